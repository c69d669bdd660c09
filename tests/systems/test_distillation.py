"""Progressive distillation: the target by hand, on an exact denoiser, and the halving of a real run to one step."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import systems, training
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.inference import Run
from diffusion_jax.sampling import grids
from diffusion_jax.systems.distillation import ProgressiveDistillation
from diffusion_jax.training import stages
from diffusion_jax.training.stages import halve, halvings
from tests.tiny_systems import NETWORK, PROCESS, FunctionNetwork, make_batch, make_run

SPREAD = 0.4  # standard deviation of the made data, independent pixels of mean 0


def v_of_gaussian(x, noise, cond):
    """E[v | x_t] for such data, where the network is told 1000 t and the process turns by an angle pi t / 2."""
    angle = (jnp.pi / 2 * noise / 1000)[:, None, None, None]
    total = jnp.cos(angle) ** 2 * SPREAD**2 + jnp.sin(angle) ** 2
    return x * jnp.cos(angle) * jnp.sin(angle) * (1 - SPREAD**2) / total


def student(**fields) -> ProgressiveDistillation:
    network = FunctionNetwork(v_of_gaussian, (4, 4, 1))
    process = {"schedule": {"name": "cosine_continuous", "limit": 40.0}, "prediction": "v"}
    defaults = {"image_size": 4, "channels": 1, "process": process, "network": network, "num_steps": 4, "weighting": "simple"}
    return ProgressiveDistillation(**{**defaults, **fields})


def two_half_steps(z: np.ndarray, place: np.ndarray, steps: int) -> np.ndarray:
    """DDIM in angles, float64: z <- cos(d) z - sin(d) v, twice (Salimans & Ho 2022, appendix D)."""
    angle, half = np.pi / 2 * place / steps, np.pi / 4 / steps
    for _ in range(2):
        total = np.cos(angle) ** 2 * SPREAD**2 + np.sin(angle) ** 2
        v = z * (np.cos(angle) * np.sin(angle) * (1 - SPREAD**2) / total)[:, None, None, None]
        z = np.cos(half) * z - np.sin(half) * v
        angle = angle - half
    return z


@pytest.mark.parametrize("steps", [4, 1])
def test_one_ddim_step_to_the_target_is_two_half_steps_of_the_teacher(steps):
    system = student(num_steps=steps)
    z = np.random.default_rng(0).standard_normal((steps, 4, 4, 1))
    place = np.arange(1, steps + 1)
    target = system.target({"teacher": {}}, {}, jnp.asarray(z, jnp.float32), jnp.asarray(place))
    # One whole step in angles, with the v that the target implies: x = cos z - sin v.
    angle, whole = (np.pi / 2 * value[:, None, None, None] for value in (place / steps, np.ones(steps) / steps))
    v = (np.cos(angle) * z - np.asarray(target, np.float64)) / np.sin(angle)
    np.testing.assert_allclose(np.cos(whole) * z - np.sin(whole) * v, two_half_steps(z, place, steps), atol=2e-5)


def test_the_loss_is_zero_for_the_student_that_does_both_steps_and_only_for_it():
    """On Gaussian data a DDIM step is a multiplication; the student's v has a factor for each of its times."""
    steps, place = 4, np.arange(1, 5)
    through = two_half_steps(np.ones((steps, 1, 1, 1)), place, steps)[:, 0, 0, 0]
    whole = np.pi / 2 / steps
    factors = (np.cos(whole) - through) / np.sin(whole)  # cos(d) - sin(d) v = both steps

    def network(scale: float) -> FunctionNetwork:
        table = jnp.asarray(factors * scale, jnp.float32)
        return FunctionNetwork(
            lambda x, noise, cond: x * table[jnp.round(noise / 250).astype(int) - 1][:, None, None, None], (4, 4, 1)
        )

    class Both(FunctionNetwork):
        """The student by default, the teacher with the teacher's parameters."""

        def apply(self, params, x, noise, cond=None, **_):
            return v_of_gaussian(x, noise, cond) if params == "teacher" else self.function(x, noise, cond)

    def loss(scale: float, weighting: str) -> float:
        both = Both(network(scale).function, (4, 4, 1))
        system = student(network=both, weighting=weighting)
        return float(system.loss({}, {}, make_batch(4, 64), jax.random.key(0), frozen={"teacher": "teacher"})[0])

    for weighting in ("simple", "truncated_snr"):
        assert loss(1.0, weighting) < 1e-9
        assert loss(1.1, weighting) > 1e-4 and loss(0.9, weighting) > 1e-4


def test_weights_by_hand_at_the_noisiest_time():
    """One step: t = 1, where the SNR is 0, alpha 0, and v = -x0: both weights are 1, and the loss the error of x0."""
    always = FunctionNetwork(lambda x, noise, cond: jnp.full_like(x, 0.25), (4, 4, 1))
    batch = make_batch(4, 8)
    data = batch["image"] / 127.5 - 1
    for weighting in ("truncated_snr", "simple"):
        system = student(network=always, num_steps=1, weighting=weighting)
        loss = system.loss({}, {}, batch, jax.random.key(0), train=False)[0]  # without a teacher: against the data
        np.testing.assert_allclose(loss, ((-0.25 - data) ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process": {"schedule": "cosine_continuous", "prediction": "eps"}}, "dividing by alpha.*use 'v' or 'x0'"),
        ({"process": {"schedule": "vp_sde", "prediction": "edm_vp"}}, "'edm_vp' becomes x0 by dividing by alpha"),
        ({"process": {"schedule": "cosine", "prediction": "v"}, "num_steps": 8}, "16 steps does not stand on the 1000 steps"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"times": "low_discrepancy"}, "no use of 'times'"),
        ({"weighting": "vlb"}, "'vlb' would train nothing: use 'truncated_snr' or 'simple'"),
        ({"guidance": 2.0}, "needs classes and a teacher trained with condition dropout"),
    ],
)
def test_students_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        student(**fields)


def test_guidance_is_distilled():
    """The target with scale 3 is that of the extrapolated teacher."""

    def v(x, noise, cond):
        return jnp.where((cond["label"] == 4)[:, None, None, None], 0.1, 0.3) * jnp.ones_like(x)

    fields = {"num_classes": 4, "cond_drop": 0.1, "num_steps": 1}
    label, x = {"label": jnp.array([2, 4])}, jnp.ones((2, 4, 4, 1))
    network = FunctionNetwork(v, (4, 4, 1), {"label": None})
    target = student(**fields, guidance=3.0, network=network).target({"teacher": {}}, label, x, jnp.array([1, 1]))
    by_hand = FunctionNetwork(lambda x, noise, cond: jnp.array([0.1 + 3 * 0.2, 0.1])[:, None, None, None] + 0 * x, (4, 4, 1))
    expected = student(network=by_hand, num_steps=1).target({"teacher": {}}, {}, x, jnp.array([1, 1]))
    np.testing.assert_allclose(target, expected, atol=1e-5)  # a dropped label stays unguided


# A run -----------------------------------------------------------------------------------------------------------------


def recipe(teacher: str, **fields) -> dict:
    return {
        "system": {
            "name": "progressive_distillation", "teacher": teacher, "num_steps": 2,
            "process": PROCESS, "network": NETWORK, "num_classes": 10, **fields,
        },
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 8, "num_threads": 1},
        "optimizer": {"name": "adam", "learning_rate": 1e-4, "decay": "linear"},
        "training": {
            "steps": 2, "checkpoint_every": 1, "log_every": 1, "tensorboard": False, "eval_every": 2, "eval_examples": 8,
        },
        "sampling": {"solver": "ddim", "grid": "trailing", "steps": 2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return make_run(tmp_path_factory.mktemp("taught") / "teacher")


@pytest.fixture(scope="module")
def students(teacher, tmp_path_factory) -> list:
    """A student of two steps, and its own student of one, after three updates each."""
    return halve(recipe(teacher), teacher, tmp_path_factory.mktemp("students"), 2, last_longer=1.5)


def test_the_teacher_is_frozen_and_the_student_starts_from_it(teacher, tmp_path):
    program = training.prepare(recipe(teacher))
    frozen = training.teachers.load(program, tmp_path)
    state = dataclasses.replace(program.init(frozen), frozen=frozen)
    theirs = jax.device_get(Run(teacher).params())
    before = jax.tree.leaves(state.params)
    assert all((np.asarray(a) == b).all() for a, b in zip(before, jax.tree.leaves(theirs), strict=True))
    assert "frozen" not in state.as_dict()
    before = [np.asarray(leaf) for leaf in before]
    state, _ = program.step(state, program.zero_metrics(), program.put(program.pipeline.batch(0)))
    assert any((np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(state.params), before, strict=True))
    kept = jax.tree.leaves(state.frozen["teacher"])
    assert all((np.asarray(a) == b).all() for a, b in zip(kept, jax.tree.leaves(theirs), strict=True))


def test_two_stages_follow_one_another(students):
    assert [path.name for path in students] == ["steps_2", "steps_1"]
    assert [training.finished_steps(path)[-1] for path in students] == [3, 3]
    assert json.loads((students[1] / "teacher.json").read_text())["teacher"] == str(students[0])
    before, after = (jax.tree.leaves(Run(path).params(step)) for path, step in zip(students, (3, 1), strict=True))
    gaps = [np.abs(a - b).max() for a, b in zip(before, after, strict=True)]
    assert 0 < max(gaps) < 1e-3  # one update from where the teacher ended


def test_a_resumed_student_keeps_its_teachers_checkpoint(teacher, students, tmp_path):
    first = students[0]
    assert (first / "teacher.json").read_text().count('"step": 1') == 1
    config = recipe(teacher)
    config["training"]["steps"] = 4
    assert training.train(config, first)["step"] == 4
    config["training"]["steps"] = 3
    config["system"]["teacher_step"] = 9
    with pytest.raises(CheckpointError, match="no checkpoint of step 9.*it has: 1"):
        training.train(config, tmp_path)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"teacher": None}, ConfigError, "--config.system.teacher=DIR"),
        ({"teacher": "nowhere"}, CheckpointError, "holds no run"),
        ({"network": {**NETWORK, "channels": 12}}, ConfigError, "another network than the student, in .* there, .* here"),
        ({"process": {"schedule": "straight_line", "prediction": "v"}}, ConfigError, "another noise schedule"),
        ({"process": {**PROCESS, "prediction": "x0"}}, ConfigError, "the prediction V.*expects X0"),
        ({"teacher_weights": "power_0.1"}, CheckpointError, "no weights 'power_0.1'"),
    ],
)
def test_teachers_that_cannot_teach(teacher, fields, error, message):
    config = recipe(teacher)
    config["system"].update(fields)
    with pytest.raises(error, match=message):
        training.prepare(config, jax.devices()[:1])


@pytest.mark.slow
def test_halving_from_64_steps_to_one(teacher, tmp_path):
    config = recipe(teacher, guidance=1.5)
    done = halve(config, teacher, tmp_path, 64)
    assert [path.name for path in done] == [f"steps_{n}" for n in (64, 32, 16, 8, 4, 2, 1)]
    recorded = [training.runs.configs.read(path) for path in done]
    assert [each["system"]["num_steps"] for each in recorded] == [64, 32, 16, 8, 4, 2, 1]
    assert [each["system"]["guidance"] for each in recorded] == [1.5] + [1.0] * 6
    assert [each["system"]["teacher"] for each in recorded[1:]] == [str(path) for path in done[:-1]]
    run = Run(done[-1])
    sampling = systems.Sampling.from_config(run.config["sampling"])
    images = run.system.sample(run.params(), jax.random.key(0), {"label": np.arange(4)}, jnp.arange(4), sampling)
    assert sampling.steps == 1 and np.isfinite(images).all()


def test_the_checkpoint_and_the_weights_of_the_recipe_are_the_first_teachers_alone(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(stages, "train", lambda config, workdir: seen.append(config["system"]) or {"interrupted": False})
    halve(recipe("", teacher_step=7, teacher_weights="raw", guidance=2.0), "first", tmp_path, 4)
    keys = ("teacher", "teacher_step", "teacher_weights", "guidance")
    assert [tuple(each[key] for key in keys) for each in seen] == [
        ("first", 7, "raw", 2.0),
        (str(tmp_path / "steps_4"), None, "ema", 1.0),
        (str(tmp_path / "steps_2"), None, "ema", 1.0),
    ]


def test_halvings():
    assert halvings(64) == [64, 32, 16, 8, 4, 2, 1] and halvings(12, 3) == [12, 6, 3]
    for first, last in ((12, 1), (4, 8), (0, 1)):
        with pytest.raises(ConfigError, match="halving"):
            halvings(first, last)


def test_noise_levels_of_a_student_are_those_it_is_sampled_at():
    """The grid "trailing" of N steps visits the times i / N."""
    np.testing.assert_allclose(grids.trailing(4)(student().process), [1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.slow
def test_digits_in_four_steps_are_as_often_the_asked_for_digit_as_their_teachers_in_64(tmp_path):
    from experiments.distilled_digits import study

    metrics = study(tmp_path, "full", 1000)
    assert metrics["judge_accuracy"] > 0.95 and metrics["teacher_64"]["agreement"] > 0.9
    assert metrics["student_4"]["agreement"] > metrics["teacher_64"]["agreement"] - 0.05
    assert metrics["student_1"]["frechet"] < 0.5 * metrics["teacher_1"]["frechet"]
