"""Samplers of score SDEs: published steps in numpy, public libraries' trajectories, stationary distributions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.registry import build
from diffusion_jax.sampling import grids, sample, solvers
from tests.oracles import BIMODAL, QUICK, Mixture
from tests.peers import peer, relative


def run(denoiser, solver, times, start, **noise) -> np.ndarray:
    """Every state in float64, with given noise."""
    program = lambda x: sample(  # noqa: E731
        denoiser, solver, times, jax.random.key(0), x.shape, initial=x, noise=noise, trajectory=True
    )
    with jax.enable_x64(True):
        return np.asarray(jax.jit(program, compiler_options=QUICK)(jnp.asarray(start))[1])


def score_of(process, x, t):
    """Of the mixture, in numpy: the gradient of the logarithm of its density."""
    alpha, sigma = process.schedule.alpha_sigma(np.float64(t))
    variances = alpha**2 * BIMODAL.variances + sigma**2
    away = (x @ BIMODAL.rotation)[:, None] - alpha * BIMODAL.means
    shares = BIMODAL.weights * np.exp(-0.5 * (away**2 / variances).sum(-1)) / np.sqrt(variances.prod(-1))
    shares /= shares.sum(-1, keepdims=True)
    return -(shares[..., None] * away / variances).sum(1) @ BIMODAL.rotation.T


def corrected(process, x, t, snr, z, scale):
    """Algorithms 4 and 5."""
    score = score_of(process, x, t)
    size = 2 * scale * (snr * np.linalg.norm(z, axis=-1) / np.linalg.norm(score, axis=-1)) ** 2
    return x + size[:, None] * score + np.sqrt(2 * size)[:, None] * z


def test_a_step_of_the_preserving_chain_is_the_published_one():
    """x_i-1 = (2 - sqrt(1 - beta)) x_i + beta score + sqrt(beta) z, after a correction of the size 1 - beta."""
    process, rng = Process("linear"), np.random.default_rng(0)
    betas = np.linspace(1e-4, 0.02, 1000)
    times = np.array([0.7, 0.699, 0.698])
    x = start = BIMODAL.marginal(process, 0.7, 8)
    z, step = rng.normal(size=(2, 2, 8, 2))
    states = run(BIMODAL.denoiser(process), solvers.predictor_corrector(snr=0.1), times, start, correction_0=z, step=step)
    for i, index in enumerate((699, 698)):
        beta = betas[index]
        x = corrected(process, x, times[i], 0.1, z[i], 1 - beta)
        x = (2 - np.sqrt(1 - beta)) * x + beta * score_of(process, x, times[i]) + np.sqrt(beta) * step[i]
        np.testing.assert_allclose(states[i + 1], x, rtol=2e-5, atol=2e-5)


def test_the_exploding_chain_beside_diffusers():
    """Their norms are means over the batch: it is of one."""
    torch, count = peer("torch"), 10
    scheduler = peer("diffusers").ScoreSdeVeScheduler(num_train_timesteps=count, snr=0.15, sigma_min=0.05, sigma_max=20.0)
    scheduler.set_timesteps(count)
    scheduler.set_sigmas(count)
    process = Process("edm", "edm")
    levels = np.exp(np.linspace(np.log(20.0), np.log(0.05), count))
    times = np.append(process.schedule.inverse(-2 * np.log(levels)), 0.0)
    start = BIMODAL.marginal(process, times[0], 1)
    x, expected, generator = torch.from_numpy(start), [start], torch.Generator().manual_seed(0)
    score = lambda x, t: torch.from_numpy(score_of(process, x.numpy(), t))  # noqa: E731
    for t, timestep in zip(times[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step_correct(score(x, t), x, generator=generator).prev_sample
        last = scheduler.step_pred(score(x, t), timestep.reshape(1), x, generator=generator)
        x = last.prev_sample
        expected.append(x.numpy())
    expected[-1] = last.prev_sample_mean.numpy()
    generator = torch.Generator().manual_seed(0)
    draws = np.stack([torch.randn((1, 2), generator=generator).numpy() for _ in range(2 * count)])
    solver = solvers.predictor_corrector(snr=0.15)
    found = run(BIMODAL.denoiser(process), solver, times, start, correction_0=draws[0::2], step=draws[1::2])
    assert relative(found, np.stack(expected)) < 1e-4


OTHERS = (pytest.param(name, marks=pytest.mark.slow) for name in ("edm", "straight_line"))


@pytest.mark.parametrize("schedule", ["vp_sde", *OTHERS])
def test_corrections_draw_from_the_distribution_of_their_time(schedule):
    """From half the deviation to the right one, up to the step's own error, of the order of snr^2."""
    process, t, variance = Process(schedule, "x0"), jnp.float32(0.5), 0.3
    denoiser = Mixture.gaussian(np.zeros(400), variance).denoiser(process)
    alpha, sigma = process.schedule.alpha_sigma(np.float64(0.5))
    deviation = np.sqrt(alpha**2 * variance + sigma**2)

    def step(x, key):
        return solvers.langevin(denoiser, x, t, 0.1, jax.random.normal(key, x.shape)), None

    @functools.partial(jax.jit, compiler_options=QUICK)
    def correct(key):
        start = 0.5 * deviation * jax.random.normal(key, (50, 400))
        return jax.lax.scan(step, start, jax.random.split(key, 150))[0]

    np.testing.assert_allclose(correct(jax.random.key(1)).std() / deviation, 1.0, atol=0.02)


@pytest.mark.parametrize(
    "predictor", ["reverse_diffusion", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddpm", "ddim"))]
)
def test_a_predictor_with_corrections_draws_from_the_data(predictor):
    """In many dimensions, where the norms that size the corrections are nearly constant."""
    process, means = Process("vp_sde", "eps"), np.array([[-0.5], [0.5]]) * np.ones(100)
    data = Mixture(np.array([0.3, 0.7]), means, np.full((2, 100), 0.3))
    solver, count = solvers.predictor_corrector(predictor, snr=0.1), 500
    draw = lambda key: sample(data.denoiser(process), solver, grids.karras(60, 0.02, 40.0), key, (count, 100))  # noqa: E731
    found = np.asarray(jax.jit(draw, compiler_options=QUICK)(jax.random.key(0)))
    right = found.mean(1) > 0
    assert abs(right.mean() - 0.7) < 4 * np.sqrt(0.21 / count)
    inner = found - np.where(right, 0.5, -0.5)[:, None]
    np.testing.assert_allclose(inner.std(), np.sqrt(0.3), rtol=0.05)
    assert abs(inner.mean()) < 0.02


def test_reverse_diffusion_of_the_sub_vp_sde():
    """Its Euler and Maruyama's step backward, x + (beta x / 2 + g^2 score) dt + g sqrt(dt) z with g^2 = beta (1 - e^(-2 B))."""
    process, (t, s) = Process("subvp_sde", "v"), (0.6, 0.5999)
    start, z = BIMODAL.marginal(process, t, 8), np.random.default_rng(0).normal(size=(1, 8, 2))
    found = run(BIMODAL.denoiser(process), solvers.reverse_diffusion(), np.array([t, s]), start, step=z)[-1]
    beta, integral = 19.9 * t + 0.1, 9.95 * t**2 + 0.1 * t
    square = beta * -np.expm1(-2 * integral) * (t - s)
    expected = (1 + 0.5 * beta * (t - s)) * start + square * score_of(process, start, t) + np.sqrt(square) * z[0]
    np.testing.assert_allclose(found - start, expected - start, atol=2e-4)
    draw = lambda key: sample(  # noqa: E731
        BIMODAL.denoiser(process), solvers.ddpm(), grids.karras(100, 0.01, 100.0), key, (4000, 2)
    )
    along = BIMODAL.along_axes(np.asarray(jax.jit(draw, compiler_options=QUICK)(jax.random.key(0))))
    np.testing.assert_allclose(along.mean(0), (BIMODAL.weights[:, None] * BIMODAL.means).sum(0), atol=0.05)


def test_settings():
    solver = build("solver", {"name": "predictor_corrector", "predictor": "heun", "corrections": 2})
    assert solver.evaluations == 4
    for fields, message in (({"snr": 0.0}, "snr must be a number above 0"), ({"predictor": "hoin"}, "unknown solver 'hoin'")):
        with pytest.raises(ConfigError, match=message):
            build("solver", {"name": "predictor_corrector", **fields})
    with pytest.raises(ConfigError, match="start from zero SNR"):
        solvers.predictor_corrector().check(Process("straight_line", "velocity"), np.array([1.0, 0.0]))
