"""Losses and weightings: identities between objectives, gradients, edges of the noise level, mistakes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.process import Denoised, Process, likelihood, losses, time_samplers, weightings
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
    loss, _ = losses.denoising(process, lambda *args: output, {}, X0, key, weighting=weighting, times=FixedTimes(t))
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


@pytest.mark.slow
def test_the_bound_of_a_chain_is_its_elbo_weight():
    """A KL of Gaussians, times T, in nats, is the weight times the squared error of x0, at every step but the first."""
    process, error, steps = Process({"name": "linear", "num_steps": 40}), 0.1, np.arange(2, 41)
    t = jnp.asarray(steps / 40, jnp.float32)
    x0 = x_t = jnp.zeros((len(steps), 3))
    terms = likelihood.vlb_term(process, Denoised(x0 + error, x0), x0, x_t, jnp.asarray((steps - 1) / 40, jnp.float32), t)
    weight = build("weighting", "elbo")(process, t)
    np.testing.assert_allclose(weight * error**2, 40 * terms * np.log(2), rtol=2e-3)
    log_snr = process.schedule.log_snr(steps / 40)
    tilted = build("weighting", {"name": "sigmoid", "bias": 1.0})(process, t)
    np.testing.assert_allclose(tilted / weight, 1 / (1 + np.exp(log_snr - 1)), rtol=1e-4)
    assert build("weighting", "elbo")(process, jnp.array([1 / 40])) > weight[0]
    # Before the first step the SNR is infinite; log-SNR is taken to fall there as it does in the second.
    first, second = process.schedule.log_snr(np.array([1, 2]) / 40)
    found = build("weighting", "elbo")(process, jnp.array([1 / 40]))
    np.testing.assert_allclose(found, 20 * (np.exp(2 * first - second) - np.exp(first)), rtol=1e-3)


def test_min_snr_at_zero_snr():
    for prediction in ("x0", "v"):
        process = Process("straight_line", prediction=prediction)
        assert build("weighting", "min_snr")(process, jnp.ones(1)) == 1.0


EDGES = jnp.array([1e-4, 1e-3, 0.5, 1.0])
WEIGHTINGS = ("simple", "x0", "snr", "truncated_snr", "min_snr", "edm", "elbo", "sigmoid")


ANY_SNR = ("x0", "v", "velocity")
PAIRS = [(schedule, p) for schedule in ("edm", "vp_sde", "cosine") for p in (*ANY_SNR, "eps", "score", "edm")]
PAIRS += [(schedule, p) for schedule in ("straight_line", "zero_terminal_snr") for p in ANY_SNR]


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
def test_weights_are_finite_from_the_cleanest_to_zero_snr(schedule, prediction):
    """EDM's time reaches sigma = 1e-26, whose square float32 does not hold; the last two end without signal."""
    process = Process(schedule, prediction=prediction)
    for name in WEIGHTINGS:
        weight = np.asarray(weightings.in_target_space(build("weighting", name), process, EDGES))
        assert np.isfinite(weight).all() and (weight >= 0).all(), (name, weight)
        if name == "simple" or (name, prediction) in (("snr", "eps"), ("x0", "x0"), ("edm", "edm")):
            np.testing.assert_allclose(weight, 1.0, rtol=1e-4, err_msg=name)


def test_simple_losses_are_plain_means():
    for process in (Process("edm", prediction="eps"), Process("edm", prediction="edm"), Process("straight_line", "v")):
        loss, output = losses.denoising(
            process,
            lambda params, x, noise, cond: jnp.zeros_like(x),
            {},
            X0,
            jax.random.key(0),
            times=time_samplers.Uniform(t_min=1e-4),
            weighting=None,
        )
        np.testing.assert_allclose(loss, output.per_example.mean(), rtol=1e-5)


def test_the_weights_of_times_multiply_the_losses():
    """Those that a time sampler gives beside its draws, and which make it unbiased; what is told of each example has none."""

    class Weighted(FixedTimes):
        def sample(self, process, key, count, state):
            return super().sample(process, key, count, state)[0], jnp.arange(count, dtype=jnp.float32)

    apply = lambda params, x, noise, cond: 0.5 * x  # noqa: E731
    loss, output = losses.denoising(Process("cosine"), apply, {}, X0, jax.random.key(0), times=Weighted(0.5))
    _, plain = losses.denoising(Process("cosine"), apply, {}, X0, jax.random.key(0), times=FixedTimes(0.5))
    np.testing.assert_array_equal(output.per_example, plain.per_example)
    np.testing.assert_allclose(loss, (np.arange(len(X0)) * plain.per_example).mean(), rtol=1e-5)


def network(params, x, noise, cond):
    """Two output channels per input channel, dependent on the parameters."""
    return jnp.concatenate([x * params["mean"], x * 0 + params["variance"]], -1)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_pure_bound():
    """By its name and its configuration alike: T times a term, which trains the mean too."""
    params = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.1)}
    process = Process("cosine", variance="learned_range")

    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(params, weighting, weight=0.0):
        return losses.denoising(process, network, params, X0, jax.random.key(0), weighting=weighting, vlb_weight=weight)

    (loss, output), gradient = objective(params, "vlb")
    assert abs(gradient["mean"]) > 0 and abs(gradient["variance"]) > 0
    np.testing.assert_allclose(loss, output.per_example.mean(), rtol=1e-5)
    assert objective(params, {"name": "vlb"})[0][0] == loss and objective(params, {"name": "vlb"})[1] == gradient
    np.testing.assert_allclose(objective(params, "vlb", 0.5)[0][0], loss / 2, rtol=1e-5)


def test_the_bound_of_a_training_step_is_a_term_of_the_chain():
    """The same x_t through the likelihood's own step: s is one step before t, whatever the rounding of t."""
    process = Process({"name": "cosine", "num_steps": 30})
    apply = lambda params, x, noise, cond: 0.5 * x  # noqa: E731
    for index in (0, 1, 17, 29):
        t = (index + 1) / 30
        _, output = losses.denoising(process, apply, {}, X0, jax.random.key(3), weighting="vlb", times=FixedTimes(t))
        x_t = process.diffuse(X0, t, jax.random.normal(named(jax.random.key(3), "noise"), X0.shape))
        term = likelihood.vlb_term(process, process.bind(apply, {})(x_t, t), X0, x_t, index / 30, t)
        np.testing.assert_allclose(output.per_example, 30 * term, rtol=1e-3)


def test_times_and_noise_may_be_given():
    """What the key would draw, given, is the same loss; nothing is drawn then, and the sampler's history stays."""
    process, key, sampler = Process("cosine", prediction="v"), jax.random.key(5), time_samplers.Importance()
    run = lambda key, **given: losses.denoising(  # noqa: E731
        process, lambda *a: 0.5 * a[1], {}, X0, key, weighting="min_snr", times=sampler, **given
    )
    drawn_value, drawn = run(key)
    noise = jax.random.normal(named(key, "noise"), X0.shape)
    value, output = run(None, t=drawn.t, noise=noise)
    np.testing.assert_allclose(value, drawn_value, rtol=1e-6)
    np.testing.assert_array_equal(output.per_example, drawn.per_example)
    np.testing.assert_array_equal(output.sampler_state["count"], 0)
    assert drawn.sampler_state["count"].sum() == len(X0)
    one, other = (run(key, **given)[1] for given in ({"noise": noise}, {"t": drawn.t}))
    np.testing.assert_array_equal(one.per_example, other.per_example)
    with pytest.raises(ConfigError, match="key to draw its times from"):
        run(None, noise=noise)
    with pytest.raises(ConfigError, match="key to draw its noise from"):
        run(None, t=drawn.t)


def test_weighted_losses_are_what_the_value_is_the_mean_of():
    params = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.1)}
    process = Process("cosine", variance="learned_range")
    fields = {"vlb_weight": 0.001, "weighting": "min_snr", "times": "importance"}
    value, output = losses.denoising(process, network, params, X0, jax.random.key(0), **fields)
    np.testing.assert_allclose(value, output.weighted.mean(), rtol=1e-6)
    weight = weightings.in_target_space(build("weighting", "min_snr"), process, output.t)
    added = output.weighted - weight * output.per_example
    assert (added > 0).all() and added.mean() > 1e-4  # the bound's share


def test_the_bound_counts_levels_of_its_range():
    """Pixels of 0 to 255 as floats are no data of [-1, 1]."""
    process = Process("cosine")
    apply = lambda *a: 0.5 * a[1]  # noqa: E731
    pixels = (X0 + 1) * 127.5
    with pytest.raises(DataError, match="clean data run from .* to 25.*give data_range"):
        losses.denoising(process, apply, {}, pixels, jax.random.key(0), weighting="vlb")
    with pytest.raises(DataError, match="x / 127.5 - 1"):
        likelihood.bits_per_dim(process.bind(apply, {}), pixels, jax.random.key(0), 4)
    assert losses.denoising(process, apply, {}, pixels, jax.random.key(0))[0] > 0  # a plain loss is of any numbers


@pytest.mark.parametrize(
    ("process", "fields", "message"),
    [
        (Process("cosine", variance="learned_range"), {}, "set vlb_weight"),
        (Process("cosine"), {"distance": "l3"}, "known: l2, l1"),
        (Process("cosine"), {"weighting": "vlb", "where": X0 > 0}, "bound is over all positions"),
        (Process("cosine", variance="learned_range"), {"vlb_weight": 0.1, "where": X0 > 0}, "bound is over all positions"),
        (Process("cosine"), {"vlb_weight": -1.0}, "must not be negative"),
        (Process("cosine"), {"weighting": "min_snrr"}, "did you mean 'min_snr'"),
        (Process("cosine"), {"weighting": {"name": "min_snr", "gama": 1.0}}, "did you mean 'gamma'"),
        (Process("cosine"), {"weighting": {"name": "min_snr", "gamma": 0.0}}, "gamma must be a number above 0"),
        (Process("cosine"), {"weighting": {"name": "edm", "sigma_data": 0.0}}, "sigma_data must be a number above 0"),
        (Process("cosine"), {"times": "unifrom"}, "did you mean 'uniform'"),
        (Process("cosine"), {}, "outputs 2 channels.*needs 1"),
    ],
)
def test_mistakes_are_named(process, fields, message):
    """The last: a network of two channels would otherwise train one of them, or broadcast."""
    params = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.1)}
    with pytest.raises(ConfigError, match=message):
        losses.denoising(process, network, params, X0, jax.random.key(0), **fields)


def test_l1():
    weight, _ = x0_error_loss("x0", "simple", 0.5)
    process = Process("cosine_continuous", prediction="x0")
    loss, _ = losses.denoising(process, lambda *a: X0 + 0.1, {}, X0, jax.random.key(3), distance="l1", times=FixedTimes(0.5))
    np.testing.assert_allclose([weight, loss], [1.0, 0.1], rtol=1e-3)


def test_the_history_sees_the_unweighted_loss():
    process = Process({"name": "linear", "num_steps": 25})
    sampler = time_samplers.Importance(history=1)
    _, output = losses.denoising(
        process, lambda *a: jnp.zeros_like(X0), {}, X0, jax.random.key(0), times=sampler, sampler_state=None
    )
    seen = output.sampler_state["losses"][output.sampler_state["count"] > 0]
    assert set(np.round(np.ravel(seen), 4)) <= set(np.round(np.asarray(output.per_example), 4))


def test_squares_summed_over_positions():
    """As DDIM has it: the mean's loss times the number of positions."""
    run = lambda distance: losses.denoising(  # noqa: E731
        Process("cosine"), lambda *a: 0.5 * a[1], {}, X0, jax.random.key(0), distance=distance
    )[0]
    np.testing.assert_allclose(run("l2_sum"), X0[0].size * run("l2"), rtol=1e-5)
