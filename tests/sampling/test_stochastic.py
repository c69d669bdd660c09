"""Stochastic samplers: mean and covariance against exact recursions for Gaussian data, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.sampling import grids, sample, solvers
from tests.oracles import GAUSSIAN, LINE, QUICK, covering, no_noise

COUNT = 20_000
MEAN, VARIANCE = GAUSSIAN.means[0], GAUSSIAN.variances[0]


def draw(denoiser, solver, grid, count=COUNT, seed=0, dim=2, **kwargs):
    run = jax.jit(
        lambda key: sample(denoiser, solver, grid, key, (count, dim), **kwargs),
        compiler_options=QUICK,
    )
    return np.asarray(run(jax.random.key(seed)))


def variances_of(process, s, t):
    """Of the step from t to s: (sigma_s^2, forward variance, posterior variance), by the chain's Bayes rule."""
    alpha_t, sigma_t = process.schedule.alpha_sigma(t)
    alpha_s, sigma_s = process.schedule.alpha_sigma(s)
    forward = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    return sigma_s**2, forward, forward * sigma_s**2 / sigma_t**2


def propagate(process, times, kept, added):
    """Mean and variance after steps x_s = alpha_s x0(x_t) + sqrt(kept) eps(x_t) + sqrt(added) noise.

    x0(x_t) is affine for Gaussian data, so the whole run is. `kept` and `added` are functions of `variances_of`.
    """
    alpha, sigma = process.schedule.alpha_sigma(times[0])
    mean, variance = np.zeros(2), np.full(2, 1.0 if process.schedule.family == "vp" else sigma**2)
    for t, s in zip(times[:-1], times[1:], strict=True):
        (alpha, sigma), (alpha_s, _) = process.schedule.alpha_sigma(t), process.schedule.alpha_sigma(s)
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        offset = MEAN - gain * alpha * MEAN
        steps = variances_of(process, s, t)
        weight = np.sqrt(max(kept(*steps), 0.0))
        slope = alpha_s * gain + weight * (1 - alpha * gain) / sigma
        mean = slope * mean + (alpha_s - weight * alpha / sigma) * offset
        variance = slope**2 * variance + (added(*steps) if s > 0 else 0.0)
    return mean, variance


def check_moments(samples, mean, variance):
    """Within five standard errors."""
    error = np.sqrt(variance / len(samples))
    assert (np.abs(samples.mean(0) - mean) < 5 * error).all(), (samples.mean(0), mean)
    assert (np.abs(samples.var(0) - variance) < 5 * variance * np.sqrt(2 / len(samples))).all(), (samples.var(0), variance)
    assert abs(np.corrcoef(samples.T)[0, 1]) < 5 / np.sqrt(len(samples))


VARIANCES = {
    "fixed_small": lambda _, forward, posterior: posterior,
    "fixed_large": lambda _, forward, posterior: forward,  # DDIM's sigma-hat
    0.3: lambda _, forward, posterior: posterior**0.7 * forward**0.3,
}


@pytest.mark.parametrize(("schedule", "variance"), covering(["vp_sde", "edm", "straight_line"], VARIANCES))
def test_ddpm_moments(schedule, variance):
    """On 25 steps, where the variances differ by much more than the error."""
    process, grid = Process(schedule, prediction="x0"), grids.karras(25, 0.01, 40.0)
    kept = lambda sigma_sq, forward, posterior: sigma_sq - posterior  # noqa: E731
    expected = propagate(process, grid(process), kept, VARIANCES[variance])
    check_moments(draw(GAUSSIAN.denoiser(process), solvers.ddpm(variance), grid), *expected)


def test_ddpm_takes_the_variance_of_the_process():
    noisy, quiet = (Process("vp_sde", variance=name) for name in ("fixed_large", "fixed_small"))
    samples = {
        name: draw(GAUSSIAN.denoiser(process), solvers.ddpm(override), grids.uniform(10), count=8)
        for name, process, override in (("own", noisy, None), ("same", quiet, "fixed_large"), ("less", quiet, None))
    }
    np.testing.assert_array_equal(samples["own"], samples["same"])
    assert np.abs(samples["own"] - samples["less"]).max() > 0.01


@pytest.mark.parametrize("schedule", ["vp_sde", "edm", "straight_line"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_ddim_step_adds_the_share_eta_of_the_posterior_deviation(schedule, eta):
    process, t, s = Process(schedule, prediction="x0"), 0.7, 0.5
    x = jnp.asarray(GAUSSIAN.marginal(process, t, 16), jnp.float32)
    denoiser, z = GAUSSIAN.denoiser(process), jax.random.normal(jax.random.key(0), x.shape)
    found, _ = solvers.ddim(eta).step(denoiser, x, (), jnp.float32(t), jnp.float32(s), lambda name: z)
    denoised, (sigma_sq, _, posterior) = denoiser(x, jnp.float32(t)), variances_of(process, s, t)
    mean = process.schedule.alpha_sigma(s)[0] * denoised.x0 + np.sqrt(sigma_sq - eta**2 * posterior) * denoised.eps
    np.testing.assert_allclose(found, mean + eta * np.sqrt(posterior) * z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", [solvers.ddpm("fixed_large"), solvers.ddim(1.0)], ids=["ddpm", "ddim"])
def test_the_last_step_adds_no_noise(solver):
    process, t = Process("vp_sde"), jnp.float32(0.1)
    denoiser, x = GAUSSIAN.denoiser(process), jnp.ones((3, 2))
    found, _ = solver.step(denoiser, x, solver.init(x, 1), t, jnp.float32(0.0), lambda name: 1e3 * x)
    np.testing.assert_allclose(found, denoiser(x, t).x0, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_moments(eta):
    process, grid = Process("cosine_continuous", prediction="v"), grids.uniform(20)
    kept = lambda sigma_sq, forward, posterior: sigma_sq - eta**2 * posterior  # noqa: E731
    expected = propagate(process, grid(process), kept, lambda _, forward, posterior: eta**2 * posterior)
    check_moments(draw(GAUSSIAN.denoiser(process), solvers.ddim(eta), grid), *expected)


def test_ddim_at_eta_one_is_ddpm():
    """The same noise gives the same samples: DDPM's fixed-small step is DDIM's at eta = 1."""
    denoiser = GAUSSIAN.denoiser(Process("vp_sde"))
    one, other = (draw(denoiser, solver, grids.uniform(50), count=64) for solver in (solvers.ddim(1.0), solvers.ddpm()))
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_ddpm_reaches_the_data_with_many_steps():
    """All 1,000 steps of the chain: what is left of the discretisation is within the error."""
    process = Process("linear")
    samples = draw(GAUSSIAN.denoiser(process), solvers.ddpm(), grids.uniform(1000), count=3000)
    check_moments(samples, MEAN, VARIANCE)


def test_learned_variance_makes_few_steps_exact():
    """For Gaussian data the reverse step is Gaussian: with its exact variance three steps keep the marginals."""
    process = Process("vp_sde", prediction="v", variance="learned_diagonal")
    times = np.array([1.0, 0.6, 0.3, 0.05])
    exact = GAUSSIAN.denoiser(Process("vp_sde", prediction="v"))
    (alpha, sigma), (alpha_s, sigma_s) = (process.schedule.alpha_sigma(part) for part in (times[:-1], times[1:]))
    marginal_s = alpha_s[:, None] ** 2 * VARIANCE + sigma_s[:, None] ** 2
    marginal_t = alpha[:, None] ** 2 * VARIANCE + sigma[:, None] ** 2
    covariance = (alpha / alpha_s)[:, None] * marginal_s
    log_variances = jnp.asarray(np.log(marginal_s - covariance**2 / marginal_t), jnp.float32)

    def function(x, t):
        step = jnp.argmin(jnp.abs(t[:, None] - times[:-1]), axis=-1)
        return exact(x, t)._replace(raw_variance=log_variances[step])

    samples = draw(Denoiser(function, process), solvers.ddpm(), times)
    check_moments(samples, alpha_s[-1] * MEAN, marginal_s[-1])
    assert np.abs(VARIANCE * alpha_s[-1] ** 2 / marginal_s[-1]).min() > 0.5  # data show at the end of the run


def heun_factor(level, level_s):
    """What Heun's step makes of y - mean (Karras et al. 2022, algorithm 1, for Gaussian data)."""
    slope = level / (VARIANCE + level**2)
    euler = 1 + (level_s - level) * slope
    return euler if level_s == 0 else 1 + 0.5 * (level_s - level) * (slope + euler * level_s / (VARIANCE + level_s**2))


@pytest.mark.parametrize(("s_churn", "s_noise"), [(0.0, 1.0), (8.0, 1.0), (30.0, 1.007)])
def test_churn_moments(s_churn, s_noise):
    """Against algorithm 2 of Karras et al. 2022 in float64; 30 / 40 exceeds the cap of sqrt(2) - 1."""
    process, grid, s_min, s_max = Process("edm", prediction="edm"), grids.karras(40), 0.05, 50.0
    levels = process.schedule.alpha_sigma(grid(process))[1]
    mean, variance = -MEAN, np.full(2, levels[0] ** 2)  # of y - mean
    for level, level_s in zip(levels[:-1], levels[1:], strict=True):
        raised = level * (1 + (min(s_churn / 40, np.sqrt(2) - 1) if s_min <= level <= s_max else 0.0))
        variance = variance + (raised**2 - level**2) * s_noise**2
        factor = heun_factor(raised, level_s)
        mean, variance = factor * mean, factor**2 * variance
    solver = solvers.heun(s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    check_moments(draw(GAUSSIAN.denoiser(process), solver, grid), MEAN + mean, variance)


@pytest.mark.parametrize(("schedule", "inside"), covering(["vp_sde", "edm", "straight_line", "linear"], [True, False]))
def test_a_churned_step_is_heuns_from_the_raised_level(schedule, inside):
    """In y = x / alpha: noise of variance (raised^2 - level^2) s_noise^2, between s_min and s_max only."""
    process, t, s = Process(schedule, prediction="x0"), jnp.float32(0.6), jnp.float32(0.5)
    level = float(np.exp(-0.5 * process.schedule.log_snr(0.6)))
    s_min, s_max = (0.9 * level, 1.1 * level) if inside else (1.1 * level, 1.3 * level)
    solver = solvers.heun(s_churn=2.0, s_min=s_min, s_max=s_max, s_noise=1.1)
    x = jnp.asarray(GAUSSIAN.marginal(process, 0.6, 16), jnp.float32)
    denoiser, z = GAUSSIAN.denoiser(process), jax.random.normal(jax.random.key(0), x.shape)
    found, _ = solver.step(denoiser, x, solver.init(x, 10), t, s, lambda name: z)
    raised, start = t, x
    if inside:
        raised = process.schedule.inverse(-2 * np.log(1.2 * level))
        alpha = process.schedule.alpha_sigma(raised)[0]
        y = x / process.schedule.alpha_sigma(0.6)[0] + np.sqrt(1.2**2 - 1) * level * 1.1 * z
        raised, start = jnp.float32(raised), jnp.asarray(alpha * y, jnp.float32)
    plain = solvers.heun()
    expected, _ = plain.step(denoiser, start, plain.init(x, 10), raised, s, no_noise)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_churn_draws_noise_and_plain_heun_does_not():
    process = Process("edm", prediction="edm")
    start = jnp.asarray(GAUSSIAN.marginal(process, 1.0, 64), jnp.float32)
    denoiser, grid = GAUSSIAN.denoiser(process), grids.karras(20)
    first, second = (draw(denoiser, solvers.heun(s_churn=10.0), grid, 64, seed, initial=start) for seed in (0, 1))
    assert np.abs(first - second).mean() > 0.05
    still = [draw(denoiser, solvers.heun(), grid, 64, seed, initial=start) for seed in (0, 1)]
    np.testing.assert_array_equal(*still)


def test_mixture_weights_are_sampled():
    process = Process("vp_sde", prediction="eps")
    samples = draw(LINE.denoiser(process), solvers.ddpm(), grids.karras(200, 0.01, 40.0), count=8000, dim=1)
    expected = LINE.cdf(np.array(-0.1))
    assert abs((samples < -0.1).mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / 8000)


def test_mistakes():
    denoiser = GAUSSIAN.denoiser(Process("cosine", prediction="v"))
    with pytest.raises(ConfigError, match="variance channels"):
        sample(denoiser, solvers.ddpm("learned_range"), grids.uniform(4), jax.random.key(0), (2, 2))
