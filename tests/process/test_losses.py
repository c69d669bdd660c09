"""Losses, weightings and time samplers: identities between objectives, unbiasedness, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, losses, time_samplers
from diffusion_jax.registry import build
from diffusion_jax.rng import named

X0 = jax.random.uniform(jax.random.key(1), (256, 2, 2, 1), minval=-1, maxval=1)


class FixedTimes:
    """One time for the whole batch."""

    def __init__(self, t):
        self.t = t

    def init_state(self, process):
        return {}

    def sample(self, process, key, count, state):
        return jnp.full(count, self.t), jnp.ones(count)

    def update(self, process, state, t, losses):
        return state


def x0_error_loss(prediction, weighting, t, error=0.1, schedule="cosine_continuous"):
    """The loss of a network whose predicted x0 is x0 + error."""
    process = Process(schedule, prediction=prediction)
    key = jax.random.key(3)
    # The loss draws eps from this name; knowing it, the exact target can be shifted by what moves x0 by `error`.
    eps = jax.random.normal(named(key, "noise"), X0.shape)
    times = jnp.full(X0.shape[0], t)
    x_t = process.diffuse(X0, times, eps)
    alpha, sigma = process.alpha_sigma(jnp.float32(t))
    wrong_x0 = X0 + error
    output = process.target(wrong_x0, (x_t - alpha * wrong_x0) / sigma, times)
    loss, _ = losses.denoising(
        process, lambda *args: output, {}, X0, key, weighting=weighting, times=FixedTimes(t)
    )
    return float(loss) / error**2, float(np.exp(process.schedule.log_snr(np.float64(t))))


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_simple_losses_in_units_of_the_x0_error(t):
    """Plain eps, v and x0 losses are SNR, SNR + 1 and 1 times the squared x0 error."""
    for prediction, expected in (("eps", lambda snr: snr), ("v", lambda snr: snr + 1), ("x0", lambda snr: 1.0)):
        weight, snr = x0_error_loss(prediction, "simple", t)
        np.testing.assert_allclose(weight, expected(snr), rtol=1e-3)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "edm"])
def test_weightings_do_not_depend_on_the_parameterisation(prediction, t):
    expected = {
        "snr": lambda snr: snr,
        "truncated_snr": lambda snr: max(snr, 1),
        "min_snr": lambda snr: min(snr, 5),
        "x0": lambda snr: 1.0,
        "edm": lambda snr: snr + 4,
    }
    for weighting, weight in expected.items():
        found, snr = x0_error_loss(prediction, weighting, t)
        np.testing.assert_allclose(found, weight(snr), rtol=2e-3, err_msg=weighting)


def test_edm_weights_published():
    """lambda(sigma) = 104, 5, 4.01 at sigma = 0.1, 1, 10; and 1 in the target's space."""
    process = Process("edm", prediction="edm")
    sigma = np.array([0.1, 1.0, 10.0])
    t = process.schedule.inverse(jnp.asarray(-2 * np.log(sigma), jnp.float32))
    weights = build("weighting", "edm")(process, t)
    np.testing.assert_allclose(weights, [104, 5, 4.01], rtol=1e-3)
    scale = process.prediction.x0_error_scale(*process.alpha_sigma(t))
    np.testing.assert_allclose(weights / scale**2, 1.0, rtol=1e-3)


def test_bounds_integrate():
    """The elbo weight is the derivative of the SNR; sigmoid multiplies it by sigmoid(bias - log-SNR)."""
    process = Process("vp_sde", prediction="v")
    t = np.linspace(0.2, 0.9, 30)
    h = 1e-5
    snr = lambda t: np.exp(process.schedule.log_snr(t))  # noqa: E731
    slope = -(snr(t + h) - snr(t - h)) / (2 * h)
    found = build("weighting", "elbo")(process, jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(found, slope / 2, rtol=1e-3)
    tilted = build("weighting", {"name": "sigmoid", "bias": -1.0})(process, jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(tilted / found, 1 / (1 + np.exp(process.schedule.log_snr(t) + 1)), rtol=1e-3)


def test_min_snr_at_zero_snr():
    process = Process("straight_line", prediction="x0")
    assert build("weighting", "min_snr")(process, jnp.ones(1)) == 1.0


def network(params, x, noise, cond):
    """Two output channels per input channel, dependent on the parameters."""
    return jnp.concatenate([x * params["mean"], x * 0 + params["variance"]], -1)


def test_hybrid_leaves_the_mean_to_the_simple_loss():
    """The bound's gradient reaches the variance channels only; the mean channels' is that of L_simple exactly."""
    params = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.1)}
    learned, fixed = Process("cosine", variance="learned_range"), Process("cosine")
    hybrid = lambda p, w: losses.denoising(learned, network, p, X0, jax.random.key(0), vlb_weight=w)[0]  # noqa: E731
    simple = lambda p: losses.denoising(fixed, lambda *a: network(*a)[..., :1], p, X0, jax.random.key(0))[0]  # noqa: E731
    of_hybrid, of_simple = jax.grad(hybrid)(params, 0.001), jax.grad(simple)(params)
    assert of_hybrid["mean"] == of_simple["mean"]
    assert abs(of_hybrid["variance"]) > 0
    np.testing.assert_allclose(jax.grad(hybrid)(params, 0.002)["variance"], 2 * of_hybrid["variance"], rtol=1e-5)


def test_the_pure_bound_trains_the_mean_too():
    params = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.1)}
    process = Process("cosine", variance="learned_range")
    gradient = jax.grad(
        lambda p: losses.denoising(process, network, p, X0, jax.random.key(0), weighting="none", vlb_weight=1.0)[0]
    )(params)
    assert abs(gradient["mean"]) > 0


def test_a_learned_variance_needs_the_bound():
    with pytest.raises(ConfigError, match="set vlb_weight"):
        losses.denoising(Process("cosine", variance="learned_range"), network, {}, X0, jax.random.key(0))
    with pytest.raises(ConfigError, match="did you mean 'l2'|known: l2"):
        losses.denoising(Process("cosine"), network, {}, X0, jax.random.key(0), distance="l3")


def test_l1():
    weight, _ = x0_error_loss("x0", "simple", 0.5)
    process = Process("cosine_continuous", prediction="x0")
    loss, _ = losses.denoising(
        process, lambda *a: X0 + 0.1, {}, X0, jax.random.key(3), distance="l1", times=FixedTimes(0.5)
    )
    np.testing.assert_allclose([weight, loss], [1.0, 0.1], rtol=1e-3)


@pytest.mark.parametrize("name", ["uniform", "low_discrepancy"])
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


def test_importance_history_is_a_ring():
    """The oldest loss of a step is forgotten, duplicates in one batch included."""
    process = Process({"name": "linear", "num_steps": 25})
    sampler = time_samplers.Importance(history=2)
    state = sampler.init_state(process)
    t = jnp.array([1.0, 1.0, 1.0])
    state = sampler.update(process, state, t, jnp.array([1.0, 2.0, 3.0]))
    assert set(np.asarray(state["losses"][24]).tolist()) == {2.0, 3.0} and state["count"][24] == 3


def test_the_history_sees_the_unweighted_loss():
    process = Process({"name": "linear", "num_steps": 25})
    sampler = time_samplers.Importance(history=1)
    _, output = losses.denoising(
        process, lambda *a: jnp.zeros_like(X0), {}, X0, jax.random.key(0), times=sampler, sampler_state=None
    )
    seen = output.sampler_state["losses"][output.sampler_state["count"] > 0]
    assert set(np.round(np.ravel(seen), 4)) <= set(np.round(np.asarray(output.per_example), 4))
