"""The consistency objective: its loss in closed form on data of one point and on Gaussian data, and its target network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Diffusion
from tests.tiny_systems import NETWORK, NO_PARAMS, FunctionNetwork, loss_of, make_batch, make_function, make_run, zeros

PROCESS = {"schedule": "edm", "prediction": {"name": "consistency", "sigma_data": 0.5}, "noise_input": "log_sigma"}
KEY = jax.random.key(0)


def fixed(count: int, **more) -> dict:
    """The fields of an objective with so many levels."""
    return {"levels": {"name": "fixed", "count": count}, "target_decay": 0.0, **more}


def make(function=zeros, process=PROCESS, **objective) -> Diffusion:
    """A consistency model of 4x4 images, with 18 levels unless the fields say otherwise."""
    objective = {"name": "consistency", **fixed(18), "target_decay": 0.9, **objective}
    return make_function(function, size=4, process=process, objective=objective)


def test_the_loss_of_training_by_hand():
    """A network that says 0: f = c_skip x. Two levels, so every example is at 80 and at 0.002, where f is the identity."""
    batch = make_batch(4, 64)
    loss, aux = loss_of(make(**fixed(2)), NO_PARAMS, batch, KEY)
    data = batch["image"] / 127.5 - 1
    skip = 0.25 / ((80 - 0.002) ** 2 + 0.25)
    # f(x + 80 z) - (x + 0.002 z), of which z is independent of x
    expected = (data**2).mean() * (1 - skip) ** 2 + (80 * skip - 0.002) ** 2
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    np.testing.assert_allclose(aux["log_snr"], -2 * np.log(80), rtol=1e-4)
    weighted = make(**fixed(2), step_weighting="inverse_step")
    np.testing.assert_allclose(loss_of(weighted, NO_PARAMS, batch, KEY)[0], loss / (80 - 0.002), rtol=1e-5)


def constant_data(value: float):
    """The F whose f is `value` at every level: the consistency function of data that is one point."""

    def function(x, noise, cond):
        level = jnp.exp(4 * noise)[:, None, None, None]
        excess = jnp.maximum(level - 0.002, 1e-12)
        skip, out = 0.25 / (excess**2 + 0.25), 0.5 * excess / jnp.sqrt(level**2 + 0.25)
        return (value - skip * x * jnp.sqrt(level**2 + 0.25)) / out

    return function


def test_the_consistency_function_of_one_point_has_no_loss_and_another_has():
    batch = {"image": np.full((16, 4, 4, 1), 255, np.uint8)}  # all data are 1
    for metric in ("l1", "l2", "pseudo_huber"):
        right, wrong = (make(constant_data(value), **fixed(2), metric=metric) for value in (1.0, 0.2))
        loss = lambda system: float(loss_of(system, NO_PARAMS, batch, jax.random.key(1))[0])  # noqa: E731
        # At the boundary f is x itself, which is 1 but for noise of 0.002.
        assert loss(right) < 0.01, metric
        assert loss(wrong) > 50 * loss(right), metric


def gaussian_teacher(spread: float):
    """The EDM network of independent Gaussian pixels with mean 0."""

    def function(x, noise, cond):
        level = jnp.exp(4 * noise)[:, None, None, None]
        norm = jnp.sqrt(level**2 + 0.25)
        y = x * norm
        x0 = spread**2 / (spread**2 + level**2) * y
        return (x0 - 0.25 / norm**2 * y) / (level * 0.5 / norm)

    return function


def test_distillation_follows_the_teachers_path():
    """On Gaussian data the path's end is x sqrt((e^2 + S^2) / (s^2 + S^2)): with that f, distillation leaves only the error
    of Heun's steps, which falls as their cube; with the f of wider data it leaves more."""
    spread = 0.4

    class Both(FunctionNetwork):
        """The student, or the teacher with the teacher's parameters."""

        def apply(self, params, x, noise, cond=None, **_):
            return gaussian_teacher(spread)(x, noise, cond) if params == "teacher" else self.function(x, noise, cond)

    def student(width: float):
        def function(x, noise, cond):
            level = jnp.exp(4 * noise)[:, None, None, None]
            excess, norm = jnp.maximum(level - 0.002, 1e-9), jnp.sqrt(level**2 + 0.25)
            end = jnp.sqrt((0.002**2 + width**2) / (level**2 + width**2))
            return (end - 0.25 / (excess**2 + 0.25)) * x * norm / (0.5 * excess / norm)

        return function

    def loss(width: float, count: int) -> float:
        network = Both(student(width), (4, 4, 1))
        system = make_function(
            size=4, process=PROCESS, network=network, objective={"name": "consistency", "paths": "teacher", **fixed(count)}
        )
        frozen = {"teacher": {"network": "teacher"}}
        return float(loss_of(system, NO_PARAMS, make_batch(4, 256), jax.random.key(2), frozen=frozen)[0])

    coarse, fine, wrong = loss(spread, 10), loss(spread, 40), loss(0.8, 40)
    assert coarse < 1e-3 and fine < coarse / 50
    assert wrong > 20 * fine


def test_the_target_network_follows_the_updates_once_a_step():
    """theta- after each update is mu theta- + (1 - mu) theta, from theta- = theta at the start."""
    system = make(lambda x, noise, cond: 0 * x, target_decay=0.9, levels={"name": "growing", "start": 2, "end": 10, "steps": 5})
    objective = system.objective
    state = {"step": jnp.zeros((), jnp.int32), "target": {"w": jnp.zeros(())}}
    given, expected = [2.0, 3.0, 5.0, 4.0], 2.0
    for k, value in enumerate(given):
        if k:
            count = int(np.ceil(np.sqrt((k - 1) / 5 * (11**2 - 2**2) + 2**2) - 1) + 1)
            mu = np.exp(2 * np.log(0.9) / count)
            expected = mu * expected + (1 - mu) * value
        for _ in range(2):  # two microbatches of one step
            state = objective.advanced(state, {"w": jnp.asarray(value)}, jnp.int32(k))
            np.testing.assert_allclose(state["target"]["w"], expected, rtol=1e-6)
            assert int(state["step"]) == k + 1
    assert set(make(target_decay=0.0).init_state()) == {"step"}


def test_microbatches_of_a_step_see_one_target():
    """The loss called twice with one step, as gradient accumulation does, and once more with the next."""
    scaled = FunctionNetwork(None, (4, 4, 1))
    object.__setattr__(scaled, "apply", lambda params, x, noise, cond=None, **_: params["w"] * x)
    object.__setattr__(scaled, "shapes", lambda: {"w": jax.ShapeDtypeStruct((), jnp.float32)})
    objective = {"name": "consistency", **fixed(18), "target_decay": 0.5}
    system = make_function(size=4, process=PROCESS, network=scaled, objective=objective)
    batch, state, targets = make_batch(4), system.init_state(), []
    for step, w in ((0, 1.0), (0, 1.0), (1, 2.0), (1, 2.0)):
        params = {"network": {"w": jnp.float32(w)}}
        _, aux = loss_of(system, params, batch, KEY, state=state, step=jnp.int32(step))
        state = aux["state"]
        targets.append(float(state["target"]["w"]))
    np.testing.assert_allclose(targets, [1.0, 1.0, 1.5, 1.5])  # 0.5 of the old one, once
    held_out = loss_of(system, params, batch, KEY, state=state, step=jnp.int32(2), train=False)[1]
    assert float(held_out["state"]["target"]["w"]) == 1.5 and int(held_out["state"]["step"]) == 2


def test_both_sides_drop_the_same_units():
    """With levels so close that both inputs agree, a network of dropout alone has no loss; with other masks it would."""

    class Drops(FunctionNetwork):
        def apply(self, params, x, noise, cond=None, *, train=False, rngs=None):
            mask = jax.random.bernoulli(rngs["dropout"], 0.5, x.shape)
            return jnp.where(mask, 1.0, 0.0) if train else 0 * x

    objective = {"name": "consistency", **fixed(4000), "sigma_max": 1.0}
    system = make_function(size=4, process=PROCESS, network=Drops(None, (4, 4, 1)), objective=objective)
    assert float(loss_of(system, NO_PARAMS, make_batch(4, 32), KEY)[0]) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"paths": "teachers"}, "did you mean 'teacher'"),
        ({"metric": "lpips"}, "metric must be one of 'l2', 'l1', 'pseudo_huber'"),
        ({"step_weighting": "snr"}, "step_weighting must be one of .*'snr'"),
        ({"target_decay": 1.0}, "target_decay must be a number in"),
        ({"guidance": 2.0}, "paths 'data' take no teacher to be guided; use paths='teacher'"),
        ({"weighting": "min_snr"}, "objective 'consistency' has no field 'weighting'"),
        ({"process": {"schedule": "edm", "prediction": "edm"}}, "needs the prediction 'consistency'"),
        ({"sigma_max": 100.0}, "sigma_max 100 lies above 80"),
        ({"levels": {"name": "fixed", "count": 1}}, "count must be a whole number at least 2"),
    ],
)
def test_consistency_models_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        make(**fields)


# A run -----------------------------------------------------------------------------------------------------------------


def recipe(**objective) -> dict:
    """The smallest recipe of a consistency model of digits."""
    return {
        "system": {
            "process": PROCESS, "network": NETWORK, "conditioners": {"labels": {"num_classes": 10}},
            "objective": {"name": "consistency", **objective},
        },
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 8, "num_threads": 1},
        "optimizer": {"name": "radam", "learning_rate": 1e-2},
        "training": {"steps": 2, "checkpoint_every": 1, "log_every": 1, "tensorboard": False},
        "sampling": {"solver": "consistency", "grid": {"name": "levels", "levels": (80.0,)}, "steps": 1},
    }  # fmt: skip


@pytest.mark.slow
def test_a_student_of_an_edm_teacher_trains_and_keeps_its_target(tmp_path):
    teacher = make_run(tmp_path / "teacher", process={"schedule": "edm", "prediction": {"name": "edm", "sigma_data": 0.5}})
    config = recipe(paths="teacher", guidance=2.0, levels={"name": "fixed", "count": 18}, target_decay=0.5)
    config["frozen"] = {"teacher": teacher}
    program = training.prepare(config)
    training.train(config, tmp_path / "student")
    restored = training.checkpoints.Checkpointer(tmp_path / "student").restore_latest(program.target)
    assert int(restored.system_state["step"]) == 2 and restored.frozen == {}
    pairs = zip(*map(jax.tree.leaves, (restored.system_state["target"], restored.params["network"])), strict=True)
    gap = max(float(jnp.abs(a - b).max()) for a, b in pairs)
    assert 0 < gap < 0.1  # it lags behind the last update

    config["system"]["process"] = {**PROCESS, "noise_input": "log_snr"}
    with pytest.raises(ConfigError, match="the teacher has the noise_input log_sigma, but the system expects log_snr"):
        training.prepare(config)


def test_levels_planned_for_another_length_are_named(caplog):
    config = recipe(levels={"name": "growing", "steps": 3})
    config["training"]["steps"] = 3
    training.prepare(config)
    assert not caplog.records
    config["training"]["steps"] = 5
    training.prepare(config)
    assert "over 3 steps, but training.steps is 5" in caplog.text
