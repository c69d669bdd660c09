"""Time samplers: marginals, unbiasedness, histories."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, time_samplers
from diffusion_jax.registry import build


@pytest.mark.parametrize("name", ["uniform", "low_discrepancy", "antithetic"])
@pytest.mark.parametrize("schedule", ["linear", "vp_sde"])
def test_uniform_marginals(name, schedule):
    process = Process(schedule)
    sampler = build("times", name)
    draw = jax.jit(jax.vmap(lambda key: sampler.sample(process, key, 16, {})[0]))
    t = np.asarray(draw(jax.random.split(jax.random.key(0), 4000))).ravel()
    assert 0 < t.min() and t.max() <= 1
    counts = np.histogram(t, 20, (0, 1))[0]
    assert np.abs(counts - 3200).max() < 5 * np.sqrt(3200)
    if schedule == "linear":
        np.testing.assert_allclose(t * 1000, np.round(t * 1000), atol=1e-3)


def test_low_discrepancy_is_stratified():
    t, _ = time_samplers.LowDiscrepancy(t_min=0.0).sample(Process("vp_sde"), jax.random.key(0), 32, {})
    gaps = np.diff(np.sort(np.asarray(t)))
    np.testing.assert_allclose(gaps, 1 / 32, atol=1e-5)


def test_warped_times():
    """ln(sigma / alpha) and logit(t) are normal with the given moments."""
    t, _ = time_samplers.LogNormal(-1.2, 1.2).sample(Process("edm"), jax.random.key(0), 20_000, {})
    log_level = -0.5 * np.asarray(Process("edm").log_snr(t))
    np.testing.assert_allclose([log_level.mean(), log_level.std()], [-1.2, 1.2], atol=0.05)
    t, _ = time_samplers.LogitNormal(0.5, 0.8).sample(Process("straight_line", "v"), jax.random.key(0), 20_000, {})
    logit = np.log(np.asarray(t) / (1 - np.asarray(t)))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0.5, 0.8], atol=0.05)


@pytest.mark.parametrize("schedule", [{"name": "linear", "num_steps": 50}, "vp_sde"])
def test_importance_sampling_is_unbiased_and_prefers_large_losses(schedule):
    process = Process(schedule)
    sampler = time_samplers.Importance(history=4, num_bins=50, uniform_mix=0.1)
    state = sampler.init_state(process)
    truth = lambda t: t**2  # noqa: E731
    np.testing.assert_allclose(sampler.probabilities(state), 1 / 50)
    update = jax.jit(lambda state, t: sampler.update(process, state, t, truth(t)))
    every = (jnp.arange(50) + 1.0) / 50
    for number in range(4):
        assert np.allclose(sampler.probabilities(state), 1 / 50), number  # uniform until every history is full
        state = update(state, every)
    t, weight = sampler.sample(process, jax.random.key(0), 100_000, state)
    exact = truth(np.asarray(every)).mean() if process.num_steps else 1 / 3
    np.testing.assert_allclose(weight.mean(), 1.0, rtol=0.02)
    np.testing.assert_allclose((weight * truth(t)).mean(), exact, rtol=0.02)
    assert 0.7 < t.mean() < 0.75  # nine tenths proportional to t^2, whose mean is 3/4


def test_importance_sampling_has_the_published_constants():
    """Improved DDPM keeps ten losses of each step, and draws a thousandth uniformly: all that a step without loss gets."""
    sampler = time_samplers.Importance()
    losses, full = jnp.ones((25, 10)).at[0].set(0.0), jnp.full(25, 10)
    assert sampler.init_state(Process({"name": "linear", "num_steps": 25}))["losses"].shape == losses.shape
    assert float(sampler.probabilities({"losses": losses, "count": full})[0]) == pytest.approx(0.001 / 25)
    np.testing.assert_allclose(sampler.probabilities({"losses": losses, "count": full.at[3].set(9)}), 1 / 25)


@pytest.mark.slow
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), batch=st.sampled_from([1, 7, 40]), history=st.integers(1, 5))
def test_importance_history_is_a_queue_for_every_step(seed, batch, history):
    """The oldest loss of a step is forgotten, in batches with duplicates too; losses that are not finite are left out."""
    process, rng = Process({"name": "linear", "num_steps": 25}), np.random.default_rng(seed)
    sampler = time_samplers.Importance(history=history)
    state, queues = sampler.init_state(process), [collections.deque(maxlen=history) for _ in range(25)]
    update = jax.jit(lambda *arguments: sampler.update(process, *arguments))
    for _ in range(3):
        steps, losses = rng.integers(1, 6, batch), rng.uniform(1, 2, batch).astype(np.float32)
        losses[rng.uniform(size=batch) < 0.1] = np.nan
        for step, loss in zip(steps, losses, strict=True):
            if np.isfinite(loss):
                queues[step - 1].append(loss)
        state = update(state, jnp.asarray(steps / 25, jnp.float32), jnp.asarray(losses))
    for kept, count, queue in zip(state["losses"], state["count"], queues, strict=True):
        assert min(int(count), history) == len(queue)
        np.testing.assert_array_equal(np.sort(np.asarray(kept))[history - len(queue) :], np.sort(queue))


def test_importance_sampling_on_a_mesh():
    """The global batch over eight devices makes the history that one device makes."""
    process, sampler = Process({"name": "linear", "num_steps": 25}), time_samplers.Importance(history=2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    t, losses = jnp.asarray((np.arange(64) % 25 + 1) / 25, jnp.float32), jnp.arange(64.0)
    update = jax.jit(lambda *arguments: sampler.update(process, *arguments))
    alone = update(sampler.init_state(process), t, losses)
    shared = update(sampler.init_state(process), jax.device_put(t, rows), jax.device_put(losses, rows))
    jax.tree.map(np.testing.assert_array_equal, alone, shared)


SAMPLERS = ("uniform", "low_discrepancy", "log_normal", "logit_normal", "importance")


@pytest.mark.parametrize("name", SAMPLERS)
def test_times_stay_where_training_has_digits(name):
    """From EDM's sigma_min on; otherwise from 1e-4; in chains on the steps themselves. Extreme moments included."""
    extreme = {"mean": -30.0, "std": 40.0} if "normal" in name else {}
    sampler = build("times", {"name": name, **extreme})
    for process, start in ((Process({"name": "edm", "sigma_min": 0.02}), (0.02 / 80) ** (1 / 7)), (Process("vp_sde"), 1e-4)):
        t, weight = sampler.sample(process, jax.random.key(0), 5000, sampler.init_state(process))
        assert start * 0.999 <= t.min() < start + 0.02 and 0.99 < t.max() <= 1 and (weight == 1).all()
    chain = Process({"name": "linear", "num_steps": 25})
    t, _ = sampler.sample(chain, jax.random.key(0), 5000, sampler.init_state(chain))
    assert set(np.round(np.asarray(t) * 25, 4)) <= set(range(1, 26)) and t.min() <= 2 / 25 and t.max() == 1


@pytest.mark.parametrize(
    "config",
    [
        {"name": "uniform", "t_min": 1.0},
        {"name": "log_normal", "std": -1.0},
        {"name": "importance", "history": 0},
        {"name": "importance", "uniform_mix": 0.0},
        {"name": "importance", "num_bins": 0},
    ],
)
def test_fields_out_of_range(config):
    with pytest.raises(ConfigError, match=list(config)[1]):
        build("times", config)


@pytest.mark.parametrize("count", [8, 7])
def test_antithetic_times_come_in_pairs(count):
    """Step i with T - 1 - i on a chain, t with 1 - t in continuous time."""
    sampler = build("times", "antithetic")
    t = np.asarray(sampler.sample(Process("linear"), jax.random.key(0), count, {})[0])
    index, half = np.round(t * 1000).astype(int) - 1, (count + 1) // 2
    np.testing.assert_array_equal(index[: count - half] + index[half:], 999)
    assert index.min() >= 0 and index.max() <= 999 and len(set(index)) == count
    t = np.asarray(sampler.sample(Process("vp_sde"), jax.random.key(0), count, {})[0])
    np.testing.assert_allclose(t[: count - half] + t[half:], 1.0, atol=1e-3)
