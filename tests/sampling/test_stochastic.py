"""Stochastic samplers: mean and covariance against exact recursions for Gaussian data, and determinism by sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process, schedules
from diffusion_jax.sampling import grids, sample, solvers
from oracles import GAUSSIAN, LINE

COUNT = 20_000


def draw(process, solver, grid, data=GAUSSIAN, count=COUNT, seed=0, **kwargs):
    shape = (count, data.means.shape[1])
    return np.asarray(
        jax.jit(lambda key: sample(data.denoiser(process), solver, grid, key, shape, **kwargs))(jax.random.key(seed))
    )


def propagate(process, times, added_variance, eps_weight):
    """Mean and variance after x_s = alpha_s x0(x_t) + k eps(x_t) + noise, exactly, in float64.

    x0(x_t) is affine for Gaussian data, so the whole run is; k and the noise's variance are functions of (s, t).
    """
    mean0, var0 = GAUSSIAN.means[0], GAUSSIAN.variances[0]
    alpha, sigma = process.schedule.alpha_sigma(times[0])
    mean, variance = np.zeros(2), np.full(2, 1.0 if process.schedule.family == "vp" else sigma**2)
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha, sigma = process.schedule.alpha_sigma(t)
        alpha_s, _ = process.schedule.alpha_sigma(s)
        gain = alpha * var0 / (alpha**2 * var0 + sigma**2)
        slope, offset = gain, mean0 - gain * alpha * mean0
        k = eps_weight(s, t)
        a = alpha_s * slope + k * (1 - alpha * slope) / sigma
        b = alpha_s * offset - k * alpha * offset / sigma
        mean, variance = a * mean + b, a**2 * variance + added_variance(s, t)
    return mean, variance


def terms(process, s, t):
    """(sigma_s^2, posterior variance) of a step, from the chain's Bayes rule."""
    alpha_t, sigma_t = process.schedule.alpha_sigma(t)
    alpha_s, sigma_s = process.schedule.alpha_sigma(s)
    forward = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    return sigma_s**2, forward * sigma_s**2 / sigma_t**2, forward


def check_moments(samples, mean, variance):
    """Within five standard errors."""
    error = np.sqrt(variance / len(samples))
    assert (np.abs(samples.mean(0) - mean) < 5 * error).all(), (samples.mean(0), mean)
    assert (np.abs(samples.var(0) - variance) < 5 * variance * np.sqrt(2 / len(samples))).all(), (samples.var(0), variance)
    assert abs(np.corrcoef(samples.T)[0, 1]) < 5 / np.sqrt(len(samples))


@pytest.mark.parametrize("schedule", ["linear", "edm", "cosine_continuous"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_moments(schedule, variance):
    process = Process({"name": schedule}, prediction="x0", variance=variance)
    grid = grids.karras(40, 0.01, 40)

    def added(s, t):
        _, small, forward = terms(process, s, t)
        return 0.0 if s == 0 else small if variance == "fixed_small" else forward

    def eps_weight(s, t):
        sigma_s_sq, small, _ = terms(process, s, t)
        return np.sqrt(max(sigma_s_sq - small, 0.0))

    mean, var = propagate(process, grid(process), added, eps_weight)
    check_moments(draw(process, solvers.ddpm(), grid), mean, var)


def test_ddpm_reaches_the_data_with_many_steps():
    """T = 1000: what is left of the discretisation is below a hundredth of a standard deviation."""
    process = Process(schedules.linear())
    samples = draw(process, solvers.ddpm(), grids.uniform(1000), count=4000)
    check_moments(samples, GAUSSIAN.means[0], GAUSSIAN.variances[0] * 1.0)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_moments(eta):
    process = Process(schedules.cosine(), prediction="v")
    grid = grids.uniform(30)

    def eps_weight(s, t):
        sigma_s_sq, small, _ = terms(process, s, t)
        return np.sqrt(max(sigma_s_sq - eta**2 * small, 0.0))

    mean, var = propagate(process, grid(process), lambda s, t: eta**2 * terms(process, s, t)[1], eps_weight)
    check_moments(draw(process, solvers.ddim(eta), grid), mean, var)


def test_ddim_at_eta_one_is_ddpm():
    """The same noise gives the same samples: DDPM's fixed-small step is DDIM's at eta = 1."""
    process = Process(schedules.linear())
    one = draw(process, solvers.ddim(1.0), grids.uniform(50), count=64)
    np.testing.assert_allclose(one, draw(process, solvers.ddpm(), grids.uniform(50), count=64), atol=2e-5)


def test_churn_keeps_the_distribution():
    """Noise added and removed again leaves the data's moments; without it Heun is deterministic."""
    process = Process(schedules.edm(), prediction="edm")
    grid = grids.karras(60)
    samples = draw(process, solvers.heun(s_churn=30, s_min=0.05, s_max=50, s_noise=1.0), grid)
    check_moments(samples, GAUSSIAN.means[0], GAUSSIAN.variances[0])
    # Churn really acts: another key for the same start gives other samples.
    start = jnp.asarray(GAUSSIAN.marginal(process, 1.0, 64), jnp.float32)
    first, second = (
        draw(process, solvers.heun(s_churn=30), grid, count=64, seed=seed, initial=start) for seed in (0, 1)
    )
    assert np.abs(first - second).mean() > 0.05
    still = [draw(process, solvers.heun(), grid, count=64, seed=seed, initial=start) for seed in (0, 1)]
    np.testing.assert_array_equal(*still)


def test_mixture_weights_are_sampled():
    process = Process(schedules.vp_sde(), prediction="eps")
    samples = draw(process, solvers.ddpm(), grids.karras(200, 0.01, 40), data=LINE, count=8000)
    share = (samples < -0.1).mean()
    exact = 0.3 * 0.99957 + 0.7 * 0.0082  # masses of the two components below -0.1
    assert abs(share - exact) < 5 * np.sqrt(0.21 / 8000)


def test_a_sample_is_a_function_of_its_index():
    """Slices of a batch, in any order and of any size, are the same samples."""
    process = Process(schedules.cosine(), prediction="v")
    whole = draw(process, solvers.ddpm(), grids.uniform(20), count=16)
    for indices in ([3, 11, 0], list(range(8, 16))):
        part = draw(process, solvers.ddpm(), grids.uniform(20), count=len(indices), indices=np.array(indices))
        np.testing.assert_allclose(part, whole[indices], atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_network_evaluations():
    """N for one-stage solvers, 2N - 1 for Heun: counted at run time."""
    process = Process(schedules.cosine(), prediction="v")
    for make, expected in ((solvers.ddim, 7), (solvers.ddpm, 7), (solvers.dpmpp_2m, 7), (solvers.heun, 13)):
        calls = []
        exact = GAUSSIAN.denoiser(process)

        def counted(x, t, exact=exact, calls=calls):
            jax.debug.callback(lambda: calls.append(1))
            return exact(x, t)

        solver = make()
        jax.block_until_ready(
            sample(Denoiser(counted, process), solver, grids.uniform(7), jax.random.key(0), (2, 2))
        )
        jax.effects_barrier()
        assert len(calls) == expected, make


def test_trajectory_and_early_end():
    process = Process(schedules.cosine(), prediction="v")
    x, path = sample(
        GAUSSIAN.denoiser(process), solvers.ddim(), grids.uniform(10), jax.random.key(0), (4, 2), trajectory=True
    )
    assert path.shape == (11, 4, 2)
    np.testing.assert_array_equal(path[-1], x)
    stopped = sample(GAUSSIAN.denoiser(process), solvers.ddim(), grids.uniform(10), jax.random.key(0), (4, 2), end=0.5)
    times = np.array(grids.uniform(10)(process))
    place = int(np.argmin(np.abs(times - 0.5)))
    assert np.abs(np.asarray(stopped - path[place])).max() < 0.2


def test_mistakes():
    process = Process(schedules.cosine(), prediction="v")
    denoiser = GAUSSIAN.denoiser(process)
    with pytest.raises(ConfigError, match="must descend"):
        sample(denoiser, solvers.ddim(), np.array([0.1, 0.5, 0.0]), jax.random.key(0), (2, 2))
    with pytest.raises(ConfigError, match="variance channels"):
        sample(denoiser, solvers.ddpm("learned_range"), grids.uniform(4), jax.random.key(0), (2, 2))
    with pytest.raises(ConfigError, match="eta"):
        solvers.ddim(-1.0)
    with pytest.raises(ConfigError, match="variant"):
        solvers.dpmpp_2m("midpiont")
