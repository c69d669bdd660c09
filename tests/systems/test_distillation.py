"""Progressive distillation: the target by hand, on an exact denoiser, and the halving of a real run to one step."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import systems, training
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.sampling import grids
from diffusion_jax.systems import Diffusion
from diffusion_jax.systems.denoising import Example
from diffusion_jax.training import stages
from diffusion_jax.training.frozen import FrozenRun
from diffusion_jax.training.stages import halve, halvings
from tests.tiny_systems import NETWORK, NO_PARAMS, PROCESS, FunctionNetwork, loss_of, make_batch, make_function, make_run

SPREAD = 0.4  # standard deviation of the made data, independent pixels of mean 0


def v_of_gaussian(x, noise, cond):
    """E[v | x_t] for such data, where the network is fed 1000 t and the process turns by an angle pi t / 2."""
    angle = (jnp.pi / 2 * noise / 1000)[:, None, None, None]
    total = jnp.cos(angle) ** 2 * SPREAD**2 + jnp.sin(angle) ** 2
    return x * jnp.cos(angle) * jnp.sin(angle) * (1 - SPREAD**2) / total


ANGLES = {"schedule": {"name": "cosine_continuous", "limit": 40.0}, "prediction": "v"}


def student(function=v_of_gaussian, conditioners=(), network=None, process=ANGLES, **objective) -> Diffusion:
    """A student of 4x4 images whose network is also its teacher's."""
    more = {} if network is None else {"network": network}
    objective = {"name": "progressive_distillation", "num_steps": 4, "weighting": "simple", **objective}
    return make_function(function, size=4, conditioners=conditioners, process=process, objective=objective, **more)


def target(system: Diffusion, cond, x, place) -> np.ndarray:
    """The x0 that two steps of the teacher imply."""
    null = {**cond, "label": jnp.full_like(cond["label"], 4)} if cond else {}
    example = Example(x, cond, null, None)
    denoise = system.objective.teacher_denoiser(system, {"teacher": NO_PARAMS}, example)
    return np.asarray(system.objective.target(denoise, x, jnp.asarray(place)), np.float64)


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
    found = target(system, {}, jnp.asarray(z, jnp.float32), place)
    # One whole step in angles, with the v that the target implies: x = cos z - sin v.
    angle, whole = (np.pi / 2 * value[:, None, None, None] for value in (place / steps, np.ones(steps) / steps))
    v = (np.cos(angle) * z - found) / np.sin(angle)
    np.testing.assert_allclose(np.cos(whole) * z - np.sin(whole) * v, two_half_steps(z, place, steps), atol=2e-5)


def test_the_loss_is_zero_for_the_student_that_does_both_steps_and_only_for_it():
    """On Gaussian data a DDIM step is a multiplication; the student's v has a factor for each of its times."""
    steps, place = 4, np.arange(1, 5)
    through = two_half_steps(np.ones((steps, 1, 1, 1)), place, steps)[:, 0, 0, 0]
    whole = np.pi / 2 / steps
    factors = (np.cos(whole) - through) / np.sin(whole)  # cos(d) - sin(d) v = both steps

    class Both(FunctionNetwork):
        """The student by default, the teacher with the teacher's parameters."""

        def apply(self, params, x, noise, cond=None, **_):
            if params == "teacher":
                return v_of_gaussian(x, noise, cond)
            table = jnp.asarray(factors * params["scale"], jnp.float32)
            return x * table[jnp.round(noise / 250).astype(int) - 1][:, None, None, None]

    def loss(scale: float, weighting: str) -> float:
        system = student(network=Both(None, (4, 4, 1)), weighting=weighting)
        params, frozen = {"network": {"scale": scale}}, {"teacher": {"network": "teacher"}}
        return float(loss_of(system, params, make_batch(4, 64), jax.random.key(0), frozen=frozen)[0])

    for weighting in ("simple", "truncated_snr"):
        assert loss(1.0, weighting) < 1e-9
        assert loss(1.1, weighting) > 1e-4 and loss(0.9, weighting) > 1e-4


def test_weights_by_hand_at_the_noisiest_time():
    """One step: t = 1, where the SNR is 0, alpha 0, and v = -x0: both weights are 1, and the loss the error of x0."""
    always = lambda x, noise, cond: jnp.full_like(x, 0.25)  # noqa: E731
    batch = make_batch(4, 8)
    data = batch["image"] / 127.5 - 1
    for weighting in ("truncated_snr", "simple"):
        system = student(always, num_steps=1, weighting=weighting)
        loss = loss_of(system, NO_PARAMS, batch, jax.random.key(0), train=False)[0]  # without a teacher: against the data
        np.testing.assert_allclose(loss, ((-0.25 - data) ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process": {"schedule": "cosine_continuous", "prediction": "eps"}}, "dividing by alpha.*use 'v' or 'x0'"),
        ({"process": {"schedule": "vp_sde", "prediction": "edm_vp"}}, "'edm_vp' becomes x0 by dividing by alpha"),
        ({"process": {"schedule": "cosine", "prediction": "v"}, "num_steps": 8}, "16 steps does not stand on the 1000 steps"),
        ({"num_steps": 0}, "num_steps must be a whole number at least 1"),
        ({"times": "low_discrepancy"}, "objective 'progressive_distillation' has no field 'times'"),
        ({"weighting": "vlb"}, "'vlb' would train nothing: use 'truncated_snr' or 'simple'"),
        ({"guidance": 2.0}, "needs conditioners and a teacher trained with condition dropout"),
    ],
)
def test_students_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        student(**fields)


def test_guidance_is_distilled():
    """The target with scale 3 is that of the extrapolated teacher."""

    def v(x, noise, cond):
        return jnp.where((cond["label"] == 4)[:, None, None, None], 0.1, 0.3) * jnp.ones_like(x)

    label, x = {"label": jnp.array([2, 4])}, jnp.ones((2, 4, 4, 1))
    found = target(student(v, {"labels": {"num_classes": 4}}, guidance=3.0, num_steps=1), label, x, [1, 1])
    by_hand = lambda x, noise, cond: jnp.array([0.1 + 3 * 0.2, 0.1])[:, None, None, None] + 0 * x  # noqa: E731
    np.testing.assert_allclose(found, target(student(by_hand, num_steps=1), {}, x, [1, 1]), atol=1e-5)
    # A dropped label (4) stays unguided.


# A run -----------------------------------------------------------------------------------------------------------------


def recipe(teacher=None, **objective) -> dict:
    return {
        "system": {
            "process": PROCESS, "network": NETWORK, "conditioners": {"labels": {"num_classes": 10}},
            "objective": {"name": "progressive_distillation", "num_steps": 2, **objective},
        },
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 8, "num_threads": 1},
        "optimizer": {"name": "adam", "learning_rate": 1e-4, "decay": "linear"},
        "training": {"steps": 2, "checkpoint_every": 1, "log_every": 1, "tensorboard": False},
        "sampling": {"solver": "ddim", "grid": "trailing", "steps": 2},
        "frozen": {"teacher": teacher},
    }  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return make_run(tmp_path_factory.mktemp("taught") / "teacher")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"frozen": {}}, ConfigError, "--config.frozen.teacher=DIR"),
        ({"frozen": {"teacher": "nowhere"}}, CheckpointError, "holds no run"),
        ({"network": {**NETWORK, "channels": 12}}, ConfigError, "another network than the student, in .* there, .* here"),
        ({"process": {"schedule": "straight_line", "prediction": "v"}}, ConfigError, "another noise schedule"),
        ({"process": {**PROCESS, "prediction": "x0"}}, ConfigError, "the teacher has the prediction V.*expects X0"),
        ({"conditioners": {}}, ConfigError, "8x8x1 image data with .'10 classes'., the student of .* with .*must agree"),
    ],
)
def test_teachers_that_cannot_teach(teacher, fields, error, message):
    config = recipe(teacher)
    for name, value in fields.items():
        (config if name == "frozen" else config["system"])[name] = value
    with pytest.raises(error, match=message):
        training.prepare(config, jax.devices()[:1])


@pytest.mark.slow
def test_halving_from_4_steps_to_one(teacher, tmp_path):
    """Each student is taught by the one before, starts from it, and has its guidance; the last two train for longer."""
    done = halve(recipe(guidance=1.5), teacher, tmp_path, 4, last_longer=1.5)
    assert [path.name for path in done] == ["steps_4", "steps_2", "steps_1"]
    assert [training.finished_steps(path)[-1] for path in done] == [2, 3, 3]
    assert json.loads((done[2] / "frozen.json").read_text())["teacher"]["run"] == str(done[1])
    recorded = [training.config.read(path) for path in done]
    objectives = [each["system"]["objective"] for each in recorded]
    assert [each["num_steps"] for each in objectives] == [4, 2, 1]
    assert [each["guidance"] for each in objectives] == [1.5, 1.0, 1.0]
    program = training.prepare(recorded[-1], jax.devices()[:1])
    load = lambda path, step: FrozenRun(str(path), step).load(program.target.params, None)[0]  # noqa: E731
    weights = load(done[1], 3), load(done[2], 1)
    gaps = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, weights), strict=True)]
    assert 0 < max(gaps) < 1e-3  # one update from where the teacher ended
    sampling = systems.Sampling.from_config(recorded[-1]["sampling"])
    images = program.system.sample(weights[1], jax.random.key(0), {"label": np.arange(4)}, jnp.arange(4), sampling)
    assert sampling.steps == 1 and np.isfinite(images).all()


def test_the_checkpoint_and_the_weights_of_the_recipe_are_the_first_teachers_alone(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(stages, "train", lambda config, workdir: seen.append(config) or {"interrupted": False})
    halve(recipe({"run": "", "step": 7, "weights": "raw"}, guidance=2.0), "first", tmp_path, 4)
    assert [(each["frozen"]["teacher"], each["system"]["objective"]["guidance"]) for each in seen] == [
        ({"run": "first", "step": 7, "weights": "raw"}, 2.0),
        ({"run": str(tmp_path / "steps_4")}, 1.0),
        ({"run": str(tmp_path / "steps_2")}, 1.0),
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
def test_digits_in_four_steps_agree_with_their_label_as_often_as_their_teachers_in_64(tmp_path):
    from experiments.distilled_digits import study

    metrics = study(tmp_path, "full", 1000)
    assert metrics["classifier_accuracy"] > 0.95 and metrics["teacher_64"]["agreement"] > 0.9
    assert metrics["student_4"]["agreement"] > metrics["teacher_64"]["agreement"] - 0.05
    assert metrics["student_1"]["frechet"] < 0.5 * metrics["teacher_1"]["frechet"]
