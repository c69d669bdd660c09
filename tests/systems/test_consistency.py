"""Consistency models: the boundary, the levels, and losses against closed forms on data of one point and on Gaussian data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax import training
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, consistency
from diffusion_jax.process.consistency import Growing, Ladder, target_decay
from diffusion_jax.sampling import grids, sample
from diffusion_jax.sampling.grids import levels
from diffusion_jax.sampling.solvers.few_step import consistency as solver
from diffusion_jax.sampling.solvers.runge_kutta import heun_step
from diffusion_jax.systems import Consistency
from tests.oracles import Mixture
from tests.tiny_systems import NETWORK, FunctionNetwork, make_batch, make_run

PROCESS = {"schedule": "edm", "prediction": {"name": "consistency", "sigma_data": 0.5}, "noise_input": "log_sigma"}


def make(**fields) -> Consistency:
    defaults = {
        "image_size": 4,
        "channels": 1,
        "process": PROCESS,
        "network": nothing(),
        "levels": {"name": "fixed", "count": 18},
    }
    return Consistency(**{**defaults, **fields})


def nothing() -> FunctionNetwork:
    return FunctionNetwork(lambda x, noise, cond: 0 * x, (4, 4, 1))


# The function ----------------------------------------------------------------------------------------------------------


def test_at_the_smallest_level_it_is_the_identity_whatever_the_network_says():
    process = Process("edm", {"name": "consistency"})
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    denoise = process.bind(lambda params, x, noise, cond: 1e3 * jnp.cos(x), {})
    t = consistency.time_of(process, jnp.array([0.002, 0.001, 0.002]))
    assert (denoise(x, t).x0 == x).all()  # to the last bit


def test_coefficients_at_a_level_by_hand():
    """sigma = 1.002, data of standard deviation 0.5: c_skip = 0.25 / 1.25, c_out = 0.5 / sqrt(1.254004), c_in beside it."""
    process = Process("edm", {"name": "consistency"}, noise_input="log_sigma")
    seen = {}

    def apply(params, x, noise, cond):
        seen.update(x=x, noise=noise)
        return jnp.full_like(x, 3.0)

    t = consistency.time_of(process, jnp.array([1.002]))
    x0 = process.bind(apply, {})(jnp.full((1, 2), 2.0), t).x0
    np.testing.assert_allclose(x0, 2 * 0.2 + 3 * 0.5 / np.sqrt(1.254004), rtol=1e-5)
    np.testing.assert_allclose(seen["x"], 2 / np.sqrt(1.254004), rtol=1e-5)
    np.testing.assert_allclose(seen["noise"], np.log(1.002) / 4, atol=1e-5)


def test_its_target_is_what_makes_it_right():
    process = Process("edm", {"name": "consistency"})
    x0, eps = jax.random.normal(jax.random.key(1), (2, 3, 5))
    t = consistency.time_of(process, jnp.array([0.01, 1.0, 70.0]))
    target, x_t = process.target(x0, eps, t), process.diffuse(x0, t, eps)
    np.testing.assert_allclose(process.decode(target, x_t, t).x0, x0, atol=1e-4)
    np.testing.assert_allclose(process.decode(target, x_t, t).eps, eps, atol=1e-2)


# Levels ----------------------------------------------------------------------------------------------------------------


def test_levels_are_the_grid_of_edm():
    """Karras et al. 2022: the published list of 18 levels, here from data to noise."""
    published = [0.002, 0.00752802, 0.022934518, 0.059947311, 0.13951647, 0.29644228, 0.58534812, 1.0881706, 1.9233398]
    found = Ladder().level(jnp.arange(18), 18)
    np.testing.assert_allclose(found[:9], published, rtol=2e-5)
    np.testing.assert_allclose(found[-1], 80.0, rtol=1e-5)
    assert (Ladder().below(found[:-1] * 1.001, 18) == jnp.arange(17)).all()


def test_growing_levels_and_their_target_decay():
    """Song et al. 2023, appendix C, with s0 = 2, s1 = 150 and K = 800,000, for CIFAR-10 with mu0 = 0.9."""
    levels = Growing()
    steps = [0, 1_000, 100_000, 400_000, 800_000]
    assert [int(levels(step)) for step in steps] == [2, 6, 54, 107, 151] and levels.last == 151
    np.testing.assert_allclose(
        [target_decay(0.9, levels, k) for k in steps], np.exp(2 * np.log(0.9) / [2, 6, 54, 107, 151]), rtol=1e-6
    )
    np.testing.assert_allclose(target_decay(0.95, consistency.Fixed(40), 7), 0.95, rtol=1e-6)


def test_log_normal_pairs_have_the_mass_between_their_levels():
    """Song & Dhariwal 2023, section 3.5: p(i) ~ erf((ln s_{i+1} - mean) / (sqrt(2) std)) - erf(the same of s_i)."""
    ladder, count, draws = Ladder(), 11, 40_000
    index = consistency.log_normal_pairs()(jax.random.key(0), draws, ladder, count)
    log_levels = np.log(np.asarray(ladder.level(jnp.arange(count), count), np.float64))
    mass = np.diff(stats.norm.cdf(log_levels, -1.1, 2.0))
    expected = draws * mass / mass.sum()
    found = np.bincount(np.asarray(index), minlength=count - 1)
    assert stats.chisquare(found, expected).pvalue > 1e-3
    uniform = consistency.uniform_pairs()(jax.random.key(0), draws, ladder, count)
    assert stats.chisquare(np.bincount(np.asarray(uniform))).pvalue > 1e-3


# The loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_of_training_by_hand():
    """A network that says 0: f = c_skip x. Two levels, so every example is at 80 and at 0.002, where f is the identity."""
    system = make(levels={"name": "fixed", "count": 2}, target_decay=0.0, metric="l2")
    batch, key = make_batch(4, 64), jax.random.key(0)
    loss, (_, aux) = system.loss({}, system.init_state(), batch, key)
    data = batch["image"] / 127.5 - 1
    skip = 0.25 / ((80 - 0.002) ** 2 + 0.25)
    # f(x + 80 z) - (x + 0.002 z), of which z is independent of x
    expected = (data**2).mean() * (1 - skip) ** 2 + (80 * skip - 0.002) ** 2
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    np.testing.assert_allclose(aux["log_snr"], -2 * np.log(80), rtol=1e-4)
    weighted = make(levels={"name": "fixed", "count": 2}, target_decay=0.0, step_weighting="inverse_step")
    np.testing.assert_allclose(weighted.loss({}, weighted.init_state(), batch, key)[0], loss / (80 - 0.002), rtol=1e-5)


def test_pseudo_huber_by_hand():
    """3072 dimensions: c = 0.00054 sqrt(3072) = 0.02993; a difference of 0.01 everywhere has the norm 0.55426."""
    difference = jnp.full((1, 32, 32, 3), 0.01)
    found = consistency.METRICS["pseudo_huber"](difference)
    np.testing.assert_allclose(found, [np.sqrt(0.55426**2 + 0.02993**2) - 0.02993], rtol=1e-4)


def constant_data(value: float) -> FunctionNetwork:
    """The F whose f is `value` at every level: the consistency function of data that is one point."""

    def function(x, noise, cond):
        level = jnp.exp(4 * noise)[:, None, None, None]
        excess = jnp.maximum(level - 0.002, 1e-12)
        skip, out = 0.25 / (excess**2 + 0.25), 0.5 * excess / jnp.sqrt(level**2 + 0.25)
        return (value - skip * x * jnp.sqrt(level**2 + 0.25)) / out

    return FunctionNetwork(function, (4, 4, 1))


def test_the_consistency_function_of_one_point_has_no_loss_and_another_has():
    batch = {"image": np.full((16, 4, 4, 1), 255, np.uint8)}  # all data are 1
    for metric in ("l1", "l2", "pseudo_huber"):
        right, wrong = (
            make(network=constant_data(value), target_decay=0.0, metric=metric, levels={"name": "fixed", "count": 2})
            for value in (1.0, 0.2)
        )
        loss = lambda system: float(system.loss({}, system.init_state(), batch, jax.random.key(1))[0])  # noqa: E731
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
        system = make(
            objective="distillation", network=Both(student(width), (4, 4, 1)), target_decay=0.0, metric="l2",
            levels={"name": "fixed", "count": count},
        )  # fmt: skip
        state, frozen = system.init_state(), {"teacher": "teacher"}
        return float(system.loss({}, state, make_batch(4, 256), jax.random.key(2), frozen=frozen)[0])

    coarse, fine, wrong = loss(spread, 10), loss(spread, 40), loss(0.8, 40)
    assert coarse < 1e-3 and fine < coarse / 50
    assert wrong > 20 * fine


def test_heun_is_of_second_order_at_times_of_each_examples_own():
    process = Process("edm", "edm")
    denoise = Mixture.gaussian([0.5, -0.3], [0.3**2, 0.6**2]).denoiser(process)
    x = jnp.array([[1.0, -0.5], [2.0, 1.0]])

    def error(pieces: int) -> float:
        levels = np.linspace([1.0, 3.0], [0.5, 1.0], pieces + 1)
        moved = x
        for upper, lower in zip(levels[:-1], levels[1:], strict=True):
            moved = heun_step(denoise, moved, *(consistency.time_of(process, jnp.asarray(level)) for level in (upper, lower)))
        mean, variance = np.array([0.5, -0.3]), np.array([0.09, 0.36])
        exact = mean + (x - mean) * np.sqrt((variance + levels[-1][:, None] ** 2) / (variance + levels[0][:, None] ** 2))
        return float(jnp.abs(moved - exact).max())

    assert 1.6 < np.log2(error(2) / error(4)) < 2.4


def test_the_target_network_follows_the_updates():
    """theta- after each update is mu theta- + (1 - mu) theta, from theta- = theta at the start."""
    system = make(target_decay=0.9, levels={"name": "growing", "start": 2, "end": 10, "steps": 5})
    state = {"step": jnp.zeros((), jnp.int32), "target": {"w": jnp.zeros(())}}
    given, expected = [2.0, 3.0, 5.0, 4.0], 2.0
    for k, value in enumerate(given):
        if k:
            count = int(np.ceil(np.sqrt((k - 1) / 5 * (11**2 - 2**2) + 2**2) - 1) + 1)
            mu = np.exp(2 * np.log(0.9) / count)
            expected = mu * expected + (1 - mu) * value
        state = system.advance({"w": jnp.asarray(value)}, state)
        np.testing.assert_allclose(state["target"]["w"], expected, rtol=1e-6)
    assert int(state["step"]) == 4 and set(make(target_decay=0.0).init_state()) == {"step"}


def test_both_sides_drop_the_same_units():
    """With levels so close that both inputs agree, a network of dropout alone has no loss; with other masks it would."""

    class Drops(FunctionNetwork):
        def apply(self, params, x, noise, cond=None, *, train=False, rngs=None):
            mask = jax.random.bernoulli(rngs["dropout"], 0.5, x.shape)
            return jnp.where(mask, 1.0, 0.0) if train else 0 * x

    system = make(network=Drops(None, (4, 4, 1)), target_decay=0.0, levels={"name": "fixed", "count": 4000}, sigma_max=1.0)
    loss = lambda train: float(system.loss({}, system.init_state(), make_batch(4, 32), jax.random.key(0), train=train)[0])  # noqa: E731
    assert loss(True) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "distil"}, "did you mean 'distillation'"),
        ({"metric": "lpips"}, "unknown metric 'lpips'.*l2, l1, pseudo_huber"),
        ({"step_weighting": "snr"}, "unknown step_weighting"),
        ({"target_decay": 1.0}, "target_decay must lie in"),
        ({"teacher": "runs/x"}, "takes no teacher; use objective='distillation'"),
        ({"weighting": "min_snr"}, "no use of 'weighting'"),
        ({"process": {"schedule": "edm", "prediction": "edm"}}, "needs the prediction 'consistency'"),
        ({"sigma_max": 100.0}, "sigma_max 100 lies above 80"),
        ({"levels": {"name": "fixed", "count": 1}}, "2 <= start"),
    ],
)
def test_consistency_models_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        make(**fields)


# Sampling --------------------------------------------------------------------------------------------------------------


def test_each_step_returns_to_the_next_level():
    """f = 0.5 always: after a step to level 3 the samples have mean 0.5 and variance 3^2 - 0.002^2; the end is 0.5."""
    process = Process("edm", {"name": "consistency"}, noise_input="log_sigma")
    value = process.bind(lambda params, x, noise, cond: 0 * x, {})
    half = value.replace(lambda x, t: value(x, t)._replace(x0=jnp.full_like(x, 0.5)))
    final, visited = sample(half, solver(), levels((80.0, 3.0)), jax.random.key(0), (4000, 4), trajectory=True)
    assert (final == 0.5).all()
    np.testing.assert_allclose(visited[0].std(), 80.0, rtol=0.02)
    np.testing.assert_allclose([visited[1].mean(), visited[1].var()], [0.5, 9.0], atol=0.25)
    coarse = sample(half, solver(sigma_min=2.0), levels((80.0, 3.0)), jax.random.key(0), (4000, 4), trajectory=True)[1]
    np.testing.assert_allclose(coarse[1].var(), 9.0 - 4.0, rtol=0.05)


def test_the_exact_function_samples_gaussian_data_in_one_step_and_in_three():
    process, spread = Process("edm", {"name": "consistency"}), 0.3
    given = process.bind(lambda params, x, noise, cond: 0 * x, {})

    def exact(x, t):
        level = jnp.exp(-0.5 * process.log_snr(t))[:, None]
        return given(x, t)._replace(x0=jnp.sqrt((0.002**2 + spread**2) / (level**2 + spread**2)) * x)

    for steps in ((80.0,), (80.0, 5.0, 0.5)):
        drawn = sample(given.replace(exact), solver(), levels(steps), jax.random.key(1), (20_000, 1))
        assert abs(float(drawn.std()) - spread) < 0.01


def test_grids_of_levels_and_their_errors():
    process = Process("edm", {"name": "consistency"})
    times = levels((80.0, 0.661))(process)
    np.testing.assert_allclose(80 * times**7, [80.0, 0.661, 0.0], rtol=1e-6)
    np.testing.assert_allclose(levels((5.0,))(process), [float(process.schedule.inverse(-2 * np.log(5.0))), 0.0])
    for bad in ((), (0.5, 80.0), (80.0, 0.0)):
        with pytest.raises(ConfigError, match="descending"):
            levels(bad)
    with pytest.raises(ConfigError, match="90 lies above 80"):
        levels((90.0,))(process)
    with pytest.raises(ConfigError, match="sigma_min"):
        solver(-1.0)
    assert len(grids.uniform(2)(process)) == 3


# A run -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_student_of_an_edm_teacher_trains_and_keeps_its_target(tmp_path):
    edm = {"schedule": "edm", "prediction": {"name": "edm", "sigma_data": 0.5}}
    teacher = make_run(tmp_path / "teacher", process=edm)
    config = {
        "system": {
            "name": "consistency", "objective": "distillation", "teacher": teacher, "process": PROCESS, "network": NETWORK,
            "num_classes": 10, "guidance": 2.0, "levels": {"name": "fixed", "count": 18}, "target_decay": 0.5,
        },
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 8, "num_threads": 1},
        "optimizer": {"name": "radam", "learning_rate": 1e-2},
        "training": {"steps": 2, "checkpoint_every": 1, "log_every": 1, "tensorboard": False},
        "sampling": {"solver": "consistency", "grid": {"name": "levels", "levels": (80.0,)}, "steps": 1},
    }  # fmt: skip
    program = training.prepare(config)
    training.train(config, tmp_path / "student")
    restored = training.checkpoints.Checkpointer(tmp_path / "student").restore_latest(program.target)
    assert int(restored.system_state["step"]) == 2 and restored.frozen == {}
    target, params = (jax.tree.leaves(tree) for tree in (restored.system_state["target"], restored.params))
    gap = max(float(jnp.abs(a - b).max()) for a, b in zip(target, params, strict=True))
    assert 0 < gap < 0.1  # it lags behind the last update

    config["system"]["process"] = {**PROCESS, "noise_input": "log_snr"}
    with pytest.raises(ConfigError, match="the noise_input log_sigma, but the system expects log_snr"):
        training.prepare(config)


def test_levels_planned_for_another_length_are_named(caplog):
    config = {
        "system": {
            "name": "consistency", "process": PROCESS, "network": NETWORK, "num_classes": 10,
            "levels": {"name": "growing", "steps": 3},
        },
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 8, "num_threads": 1},
        "training": {"steps": 3},
        "sampling": {"solver": "consistency", "grid": {"name": "levels", "levels": (80.0,)}, "steps": 1},
    }  # fmt: skip
    training.prepare(config)
    assert not caplog.records
    config["training"]["steps"] = 5
    training.prepare(config)
    assert "over 3 steps, but training.steps is 5" in caplog.text
