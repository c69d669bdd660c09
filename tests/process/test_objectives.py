"""DDPM's table of objectives: every head, reverse variance and loss trains to the closed form on Gaussian data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, losses, schedules
from diffusion_jax.sampling import guidance, sample, solvers
from tests.oracles import QUICK, Mixture

STEPS = 8
CHAIN = schedules.from_betas(np.linspace(0.02, 0.4, STEPS))
MEAN, STD = 0.2, 0.4
DATA = Mixture.gaussian([MEAN], [STD**2])
GRID = np.arange(STEPS, -1, -1) / STEPS


def network(params, x, noise, cond):
    """An affine map of its own at every step, which is what the best prediction for Gaussian data is."""
    row = params[jnp.round(noise * STEPS / 1000).astype(int)]
    prediction = row[:, :1] * x + row[:, 1:2]
    return prediction if row.shape[1] == 2 else jnp.concatenate([prediction, row[:, 2:] + 0 * x], -1)


def moments():
    """Of x_s given x_t for neighbouring steps, by Gaussian conditioning: (slope, offset, variance), each [T]."""
    alpha, sigma = (np.append(start, v) for start, v in zip((1.0, 0.0), CHAIN.alpha_sigma(GRID[:-1][::-1]), strict=True))
    variance = alpha**2 * STD**2 + sigma**2
    slope = alpha[1:] / alpha[:-1] * variance[:-1] / variance[1:]
    offset = alpha[:-1] * MEAN - slope * alpha[1:] * MEAN
    return slope, offset, variance[:-1] - slope**2 * variance[1:]


def walk(slope, offset, variance):
    """Mean and deviation of what ancestral steps make of the true x_1; the last step draws nothing."""
    alpha, sigma = CHAIN.alpha_sigma(1.0)
    mean, square = alpha * MEAN, alpha**2 * STD**2 + sigma**2
    for index in reversed(range(STEPS)):
        mean, square = slope[index] * mean + offset[index], slope[index] ** 2 * square + (index > 0) * variance[index]
    return mean, square**0.5


@functools.cache
def data(count=2048):
    return np.asarray(DATA.marginal(Process(CHAIN), 0.0, count), np.float32)


def train(process, weighting, vlb_weight, updates=250):
    params = jnp.zeros((STEPS, process.output_channels(1) + 1))
    if process.variance == "learned_diagonal":
        params = params.at[:, 2].set(-3.0)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, updates))

    def update(params, state, key):
        objective = lambda p: losses.denoising(  # noqa: E731
            process, network, p, jnp.asarray(data()), key, weighting=weighting, vlb_weight=vlb_weight, times="low_discrepancy"
        )[0]
        value, gradient = jax.value_and_grad(objective)(params)
        change, state = optimiser.update(gradient, state)
        return params + change, state, value

    step, state = jax.jit(update, compiler_options=QUICK), optimiser.init(params)
    for key in jax.random.split(jax.random.key(0), updates):
        params, state, value = step(params, state, key)
    assert np.isfinite(value)
    return params


def final(process, params, solver=None):
    """Samples from the true x_1."""
    initial = jnp.asarray(DATA.marginal(process, 1.0, 20_000), jnp.float32)
    draw = lambda x: sample(  # noqa: E731
        process.bind(network, params), solver or solvers.ddpm(), GRID, jax.random.key(1), x.shape, initial=x
    )
    return np.asarray(jax.jit(draw, compiler_options=QUICK)(initial))


LOSSES = {"simple": ("simple", 0.0), "hybrid": ("simple", 0.001), "bound": ("vlb", 0.0)}
MODES = [
    ("fixed_small", "simple"), ("fixed_small", "bound"), ("fixed_large", "bound"),
    ("learned_diagonal", "hybrid"), ("learned_diagonal", "bound"), ("learned_range", "bound"),
]  # fmt: skip
QUICK_CELLS = [("x0", "learned_diagonal", "hybrid"), ("eps", "learned_range", "bound")]
CELLS = [
    pytest.param(*cell, marks=[] if cell in QUICK_CELLS else [pytest.mark.slow])
    for cell in ((head, *mode) for head in ("mu", "eps", "x0") for mode in MODES)
]


@pytest.mark.parametrize(("head", "variance", "loss"), CELLS)
def test_every_cell_trains_and_samples(head, variance, loss):
    """All means become the closed form; variances that are learned become that of x_s given x_t, which makes steps exact."""
    process = Process(CHAIN, head, variance=variance)
    params = train(process, *LOSSES[loss])
    slope, offset, exact = moments()
    probe = jnp.asarray([[-0.5]] * STEPS + [[0.9]] * STEPS)
    index = np.tile(np.arange(STEPS), 2)
    s, t = jnp.asarray(index / STEPS, jnp.float32), jnp.asarray((index + 1) / STEPS, jnp.float32)

    def step(x, s, t):
        denoised = process.bind(network, params)(x, t)
        return process.reverse_mean(denoised, x, s, t), process.reverse_log_variance(denoised, s, t) + 0 * x

    mean, log_variance = (np.asarray(value)[:, 0] for value in jax.jit(step, compiler_options=QUICK)(probe, s, t))
    np.testing.assert_allclose(mean, slope[index] * np.asarray(probe)[:, 0] + offset[index], atol=0.03)
    if process.learns_variance:
        # Interpolated between two numbers that are one where the step ends in data: there is nothing to learn there.
        learned = index >= (1 if variance == "learned_range" else 0)
        np.testing.assert_allclose(log_variance[learned], np.log(exact)[index][learned], atol=0.12)
    drawn = {"fixed_small": small_variances(), "fixed_large": np.linspace(0.02, 0.4, STEPS)}.get(variance, exact)
    found = final(process, params)
    np.testing.assert_allclose([found.mean(), found.std()], walk(slope, offset, drawn), atol=0.02)


def small_variances():
    """beta_t (1 - abar_s) / (1 - abar_t)."""
    betas = np.linspace(0.02, 0.4, STEPS)
    kept = np.cumprod(1 - betas)
    return betas * (1 - np.append(1.0, kept[:-1])) / (1 - kept)


def test_what_no_loss_trains_is_an_error():
    """Squared error with a learned variance; a bound that would reach nothing."""
    for variance in ("learned_diagonal", "learned_range"):
        with pytest.raises(ConfigError, match="learned through the variational bound.*set vlb_weight"):
            losses.check(Process("linear", variance=variance), "simple", "l2", 0.0)
    with pytest.raises(ConfigError, match="'fixed_small' is fixed: set vlb_weight to 0"):
        losses.check(Process("linear"), "simple", "l2", 0.001)
    losses.check(Process("linear"), "vlb", "l2", 0.5)


def test_the_target_of_mu_is_ddpms_formula():
    """c1 x0 + c2 x_t from betas in float64, at every step of two chains; c1 at the ends as published for the linear one."""
    for name, chain in (("linear", schedules.linear()), ("jsd", schedules.jsd(40)), ("cosine", schedules.cosine(4000))):
        process = Process(chain, "mu")
        count = chain.num_steps
        kept = chain.alpha_sigma(np.arange(1, count + 1) / count)[0] ** 2
        before = np.append(1.0, kept[:-1])
        betas = 1 - kept / before
        c1, c2 = betas * np.sqrt(before) / (1 - kept), (1 - before) * np.sqrt(1 - betas) / (1 - kept)
        rng = np.random.default_rng(0)
        x0, eps = rng.standard_normal((2, count, 1))
        x_t = np.sqrt(kept)[:, None] * x0 + np.sqrt(1 - kept)[:, None] * eps
        t = jnp.arange(1, count + 1) / count
        target, decode = (jax.jit(f, compiler_options=QUICK) for f in (process.target, process.decode))
        found = target(jnp.asarray(x0, jnp.float32), jnp.asarray(eps, jnp.float32), t)
        np.testing.assert_allclose(found, c1[:, None] * x0 + c2[:, None] * x_t, atol=2e-4, err_msg=name)
        if name == "linear":
            np.testing.assert_allclose(c1[[0, 1, 999]], [1, 0.5452915, 1.2835149e-4], rtol=1e-6)
            np.testing.assert_allclose(c2[[0, 1, 999]], [0, 0.4547085, 0.98994868], rtol=1e-6, atol=1e-12)
        decoded = decode(found, jnp.asarray(x_t, jnp.float32), t)
        amplified = 1e-5 / c1[:, None] + 1e-4
        assert (np.abs(np.asarray(decoded.x0) - x0) < amplified).all()


def test_a_predicted_mean_is_used_as_it_is():
    """Clipping moves the reported x0 alone; a longer step, and a guided one, use the x0 that the mean implies."""
    process = Process("linear", "mu")
    x, output = jnp.asarray([[0.3]]), jnp.asarray([[0.7]])
    denoiser = process.bind(lambda params, x, noise, cond: output, {})
    clipped = guidance.static_threshold(denoiser)
    denoised = clipped(x, 0.5)
    assert float(jnp.abs(denoised.x0).max()) == 1.0 and float(jnp.abs(denoiser(x, 0.5).x0).max()) > 2
    assert float(process.reverse_mean(denoised, x, 0.499, 0.5)[0, 0]) == float(output[0, 0])
    longer = process.reverse_mean(denoised, x, 0.4, 0.5)
    np.testing.assert_allclose(longer, process.posterior(denoised.x0, x, 0.4, 0.5)[0])
    guided = guidance.classifier_free(denoiser, process.bind(lambda *given: 0 * output, {}), 2.0)(x, 0.5)
    assert guided.mean is None
    np.testing.assert_allclose(process.reverse_mean(guided, x, 0.499, 0.5), 2 * output, rtol=1e-3)


def test_before_its_first_step_mu_is_the_data():
    """Grids may go below a chain's first level: what is told there is the mean of the first step, x0 itself."""
    process, output = Process("linear", "mu"), jnp.array([[0.7], [-0.2]])
    decoded = process.decode(output, jnp.array([[0.3], [0.1]]), jnp.array([2e-4, 1e-3]))
    np.testing.assert_allclose(decoded.x0, output, rtol=1e-6)
    assert np.isfinite(decoded.eps).all()


def test_mu_needs_a_chain():
    with pytest.raises(ConfigError, match="'mu' is of the step before.*'vp_sde' is continuous"):
        Process("vp_sde", "mu")
