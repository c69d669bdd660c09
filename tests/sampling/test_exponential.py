"""Exponential integrators: exact on polynomials in half-log-SNR, identities, starts at zero SNR, and the stochastic forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from diffusion_jax.process import Denoised, Denoiser, Process
from diffusion_jax.sampling import grids, sample, solvers
from diffusion_jax.sampling.solvers.dpmpp import phi
from tests.oracles import BIMODAL, GAUSSIAN, LINE, QUICK, covering, no_noise

MEAN, VARIANCE = GAUSSIAN.means[0], GAUSSIAN.variances[0]
POLYNOMIAL = np.polynomial.Polynomial([0.4, -0.3, 0.25])
FAMILIES = ["vp_sde", "edm", "straight_line"]
ONE_FAMILY = ["vp_sde", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])]


def half_log_snr(process, t):
    return 0.5 * float(process.schedule.log_snr(np.float64(t)))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_is_its_integral(k):
    """phi_k(z) = 1 / (k - 1)! * integral of e^((1 - u) z) u^(k - 1) over [0, 1]."""
    with jax.enable_x64(True):
        for z in (-30.0, -2.0, -1.001, -0.999, -1e-3, 0.0):
            value, _ = integrate.quad(lambda u, z=z: np.exp((1 - u) * z) * u ** (k - 1), 0, 1)
            np.testing.assert_allclose(phi(k, jnp.float64(z)), value / np.prod(range(1, k)), rtol=1e-9)
    single = jnp.float32(-1e-3)  # where the recursion would have no digits left
    np.testing.assert_allclose(phi(k, single), phi(k, jnp.float32(0.0)), rtol=2e-3)


def last_step(solver, process, times):
    """A run whose prediction is a polynomial in half-log-SNR, whatever x is; its last two states and the exact last one."""

    def function(x, t):
        x0 = jnp.polyval(jnp.asarray(POLYNOMIAL.coef[::-1]), 0.5 * process.log_snr(t))
        return Denoised(jnp.broadcast_to(x0[:, None], x.shape), jnp.zeros_like(x))

    with jax.enable_x64(True):
        x = jnp.ones((1, 1))
        _, path = sample(Denoiser(function, process), solver, times, jax.random.key(0), x.shape, initial=x, trajectory=True)
        before, found = (float(state[0, 0]) for state in path[-2:])
    # x_s / sigma_s = x_t / sigma_t + integral of e^l x0(l)
    sigma = [process.schedule.alpha_sigma(t)[1] for t in times[-2:]]
    ends = [half_log_snr(process, t) for t in times[-2:]]
    integral, _ = integrate.quad(lambda u: np.exp(u) * POLYNOMIAL(u), *ends, epsrel=1e-12)
    return found, sigma[1] * (before / sigma[0] + integral)


@pytest.mark.parametrize("schedule", ONE_FAMILY)
def test_order_three_is_exact_on_parabolas(schedule):
    """With uneven steps, once there is history; the libraries' form is not."""
    process, times = Process(schedule, "x0"), np.float32([0.8, 0.71, 0.65, 0.57]).astype(np.float64)
    for solver in (solvers.dpmpp_3m(), solvers.unipc(3, corrector=False), solvers.unipc(3, "bh1", corrector=False)):
        found, exact = last_step(solver, process, times)
        np.testing.assert_allclose(found, exact, rtol=1e-6)
    found, exact = last_step(solvers.dpmpp_3m("library"), process, times)
    assert abs(found - exact) > 1e-4


@pytest.mark.parametrize("schedule", ONE_FAMILY)
def test_deterministic_limits(schedule):
    """At eta = 0 the SDE's solvers are the ODE's; UniP-2 is 2M, with either B(h) where steps are short."""
    process, grid = Process(schedule, "x0"), grids.karras(8, 0.02, 20.0)
    start = jnp.asarray(BIMODAL.marginal(process, grid(process)[0], 8), jnp.float32)

    def run(solver):
        return sample(BIMODAL.denoiser(process), solver, grid, jax.random.key(0), start.shape, initial=start)

    np.testing.assert_array_equal(run(solvers.dpmpp_2m_sde(0.0)), run(solvers.dpmpp_2m()))
    np.testing.assert_array_equal(run(solvers.dpmpp_2m_sde(0.0, "taylor")), run(solvers.dpmpp_2m("taylor")))
    np.testing.assert_array_equal(run(solvers.dpmpp_sde(0.0)), run(solvers.dpmpp_2s()))
    np.testing.assert_allclose(run(solvers.unipc(2, corrector=False)), run(solvers.dpmpp_2m()), atol=1e-4)


@pytest.mark.parametrize(("schedule", "eta"), covering(FAMILIES, [1.0, 0.5]))
def test_sde_2m_moments(schedule, eta):
    """Against the recursion of (y, previous D) in levels, y = x / alpha, D = mean + gain (y - mean), in float64."""
    process = Process(schedule, "x0")
    times = grids.karras(12, 0.02, 20.0)(process)
    levels = np.sqrt(np.exp(-process.schedule.log_snr(times)))
    mean, second = np.full(2, 0.0), np.zeros((2, 2, 2))  # of y - MEAN, and the covariance of (y, previous y)
    alpha = process.schedule.alpha_sigma(times[0])[0]
    start = 1.0 if process.schedule.family == "vp" else alpha * levels[0]
    mean, second[:, 0, 0] = -MEAN, (start / alpha) ** 2
    means, gain_before, h_before = np.stack([mean, mean], 1), np.zeros(2), None
    for level, level_s in zip(levels[:-1], levels[1:], strict=True):
        gain = VARIANCE / (VARIANCE + level**2)
        if level_s == 0:
            transition, added = np.stack([np.stack([gain, 0 * gain]), np.stack([1 + 0 * gain, 0 * gain])]), 0.0
        else:
            h = np.log(level / level_s)
            kept, pulled = level_s / level * np.exp(-eta * h), 1 - np.exp(-(1 + eta) * h)
            ahead = 0.0 if h_before is None else 0.5 * h / h_before
            # y' - mean = kept (y - mean) + pulled (D + ahead (D - D_before) - mean) + noise
            row = np.stack([kept + pulled * (1 + ahead) * gain, -pulled * ahead * gain_before])
            transition = np.stack([row, np.stack([1 + 0 * gain, 0 * gain])])
            added, h_before = level_s**2 * (1 - np.exp(-2 * eta * h)), h
        transition = np.moveaxis(transition, -1, 0)
        means = np.einsum("dij,dj->di", transition, means)
        second = transition @ second @ np.swapaxes(transition, 1, 2)
        second[:, 0, 0] += added
        gain_before = gain
    _check_moments(process, solvers.dpmpp_2m_sde(eta), times, MEAN + means[:, 0], second[:, 0, 0])


@pytest.mark.parametrize(("schedule", "eta"), covering(FAMILIES, [1.0, 0.5]))
def test_sde_single_step_moments(schedule, eta):
    """The same in levels, with two draws a step, the first of which is carried on."""
    process = Process(schedule, "x0")
    times = grids.karras(8, 0.02, 20.0)(process)
    levels = np.sqrt(np.exp(-process.schedule.log_snr(times)))
    alpha = process.schedule.alpha_sigma(times[0])[0]
    start = 1.0 if process.schedule.family == "vp" else alpha * levels[0]
    mean, variance = -MEAN, np.full(2, (start / alpha) ** 2)
    for level, level_s in zip(levels[:-1], levels[1:], strict=True):
        gain = VARIANCE / (VARIANCE + level**2)
        if level_s == 0:
            mean, variance = gain * mean, gain**2 * variance
            continue
        h, middle = np.log(level / level_s), np.sqrt(level * level_s)
        gain_middle = VARIANCE / (VARIANCE + middle**2)
        half = np.exp(-(1 + eta) * h / 2)
        inner, pulled = half + (1 - half) * gain, 1 - half**2
        factor = half**2 + pulled * gain_middle * inner  # r = 1/2: the slope replaces D by D at the middle
        drawn = 1 - np.exp(-eta * h)
        carried = level_s * np.exp(-eta * h / 2) + pulled * gain_middle * middle
        mean = factor * mean
        variance = factor**2 * variance + drawn * carried**2 + drawn * level_s**2
    _check_moments(process, solvers.dpmpp_sde(eta), times, MEAN + mean, variance)


def _check_moments(process, solver, times, mean, variance, count=20_000):
    """Within five standard errors."""
    run = jax.jit(lambda key: sample(GAUSSIAN.denoiser(process), solver, times, key, (count, 2)), compiler_options=QUICK)
    samples = np.asarray(run(jax.random.key(0)))
    assert (np.abs(samples.mean(0) - mean) < 5 * np.sqrt(variance / count)).all(), (samples.mean(0), mean)
    assert (np.abs(samples.var(0) / variance - 1) < 5 * np.sqrt(2 / count)).all(), (samples.var(0), variance)


@pytest.mark.parametrize(("schedule", "eta"), covering(FAMILIES, [0.4, 1.0]))
def test_euler_ancestral_goes_below_and_up_again(schedule, eta):
    """In levels: down to sqrt(level_s^2 - up^2) by Euler's method, and noise of deviation `up`."""
    process, t, s = Process(schedule, prediction="x0"), 0.7, 0.5
    x = jnp.asarray(LINE.marginal(process, t, 16), jnp.float32)
    denoiser, z = LINE.denoiser(process), jax.random.normal(jax.random.key(0), x.shape)
    found, _ = solvers.euler_ancestral(eta).step(denoiser, x, (), jnp.float32(t), jnp.float32(s), lambda name: z)
    level, level_s = (np.exp(-half_log_snr(process, time)) for time in (t, s))
    up = eta * np.sqrt(level_s**2 * (level**2 - level_s**2) / level**2)
    down = np.sqrt(level_s**2 - up**2)
    y = x / process.schedule.alpha_sigma(t)[0]
    y = y + (y - denoiser(x, jnp.float32(t)).x0) / level * (down - level) + up * z
    np.testing.assert_allclose(found, process.schedule.alpha_sigma(s)[0] * y, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "solver",
    [solvers.dpmpp_2s(), solvers.dpmpp_3m(), solvers.dpmpp_3m("library"), solvers.unipc(3), solvers.unipc(3, "bh1")],
    ids=["2s", "3m", "3m-library", "unipc-bh2", "unipc-bh1"],
)
def test_from_zero_snr_the_first_step_is_ddim(solver):
    """The step out of pure noise has no half-log-SNR to start from; test_exact follows such runs to their ends."""
    process, grid = Process("straight_line", prediction="v"), grids.uniform(6)
    start = jnp.asarray(BIMODAL.marginal(process, 1.0, 16), jnp.float32)
    found, path = jax.jit(
        lambda x: sample(BIMODAL.denoiser(process), solver, grid, jax.random.key(0), x.shape, initial=x, trajectory=True),
        compiler_options=QUICK,
    )(start)
    t, s = (jnp.float32(time) for time in grid(process)[:2])
    first, _ = solvers.ddim().step(BIMODAL.denoiser(process), start, (), t, s, no_noise)
    np.testing.assert_allclose(path[1], first, atol=1e-5)
    np.testing.assert_allclose(found, BIMODAL.transported(process, 1.0, start), atol=0.2)


def test_order_three_starts_anew_behind_zero_snr():
    """Half-log-SNR has no bound behind the step out of pure noise: the next one is `dpmpp_2s`'s, not of first order."""
    process, times = Process("straight_line", prediction="v"), np.array([1.0, 0.8, 0.5])
    denoiser, start = BIMODAL.denoiser(process), jnp.asarray(BIMODAL.marginal(process, 1.0, 16), jnp.float32)
    _, path = sample(denoiser, solvers.dpmpp_3m(), times, jax.random.key(0), start.shape, initial=start, trajectory=True)
    second, first = (
        solver.step(denoiser, path[1], (), jnp.float32(0.8), jnp.float32(0.5), no_noise)[0]
        for solver in (solvers.dpmpp_2s(), solvers.ddim())
    )
    np.testing.assert_allclose(path[2], second, atol=1e-5)
    assert np.abs(second - first).max() > 0.01


def test_order_three_does_not_extrapolate_over_a_leap():
    """Even indices take a last step of four times the half-log-SNR of the one before: its parabola would reach far off."""
    process, grid = Process("linear", prediction="v"), grids.uniform(25)
    start = jnp.asarray(BIMODAL.marginal(process, 1.0, 16), jnp.float32)
    steps = np.diff(0.5 * process.schedule.log_snr(grid(process)[:-1]))
    assert steps[-1] > 4 * steps[-2] and (steps[:-1] < 2 * np.append(np.inf, steps[:-2])).all()
    expected, errors = BIMODAL.transported(process, 1.0, start), []
    for solver in (solvers.dpmpp_3m(), solvers.dpmpp_3m("library")):
        run = lambda x: sample(BIMODAL.denoiser(process), solver, grid, jax.random.key(0), x.shape, initial=x)  # noqa: B023, E731
        errors.append(np.abs(np.asarray(jax.jit(run, compiler_options=QUICK)(start)) - expected).max())
    assert errors[0] < 0.06 and errors[1] > 0.4, errors
