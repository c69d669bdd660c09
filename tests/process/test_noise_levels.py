"""Levels drawn between the steps of a chain, networks that are told them, and sampling on another schedule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, losses
from diffusion_jax.process.noise_levels import on_schedule
from diffusion_jax.process.time_samplers import PiecewiseUniform
from diffusion_jax.process.types import Denoised
from diffusion_jax.sampling import grids, sample, solvers

TRAINED = {"name": "linear", "num_steps": 2000, "beta_start": 2e-6, "beta_end": 0.02}


def _gammas(betas):
    return np.append(1.0, np.cumprod(1 - np.asarray(betas, np.float64)))


@pytest.mark.parametrize("of", ["gamma", "sqrt_gamma"])
def test_levels_are_uniform_between_neighbouring_steps(of):
    betas = [0.1, 0.3, 0.5]
    process = Process({"name": "betas", "betas": betas})
    t, weight = PiecewiseUniform(of).sample(process, jax.random.key(0), 30_000, {})
    level = np.asarray(process.alpha_sigma(t)[0], np.float64)
    level, edges = (level**2, _gammas(betas)) if of == "gamma" else (level, np.sqrt(_gammas(betas)))
    assert (np.asarray(weight) == 1).all() and level.min() >= edges[-1] * (1 - 1e-5)
    for upper, lower in zip(edges, edges[1:], strict=False):
        inside = level[(level <= upper) & (level > lower)]
        assert abs(len(inside) - 10_000) < 400  # every step alike
        place = np.sort((inside - lower) / (upper - lower))
        assert np.abs(place - np.linspace(0, 1, len(place))).max() < 0.025  # uniform, by Kolmogorov and Smirnov


def test_levels_keep_their_digits_near_data_and_near_noise():
    process = Process(TRAINED)
    t, _ = PiecewiseUniform("gamma").sample(process, jax.random.key(1), 50_000, {})
    alpha, sigma = (np.asarray(each, np.float64) for each in process.alpha_sigma(t))
    gammas = _gammas(np.linspace(1e-6, 1e-2, 2000))
    step = np.clip(np.ceil(np.asarray(t, np.float64) * 2000 - 1e-3).astype(int), 1, 2000)
    assert np.isfinite(alpha).all() and (sigma > 0).all()
    low, high = 1 - gammas[step - 1], 1 - gammas[step]
    width = high - low
    assert ((sigma**2 > low - 0.01 * width - 2e-7) & (sigma**2 < high + 0.01 * width + 2e-7)).all()
    assert np.bincount(step, minlength=2001)[1:].min() > 3


def test_the_network_is_told_the_level_whatever_the_schedule():
    gammas = _gammas(np.linspace(1e-4, 0.09, 1000))
    times = jnp.array([1, 40, 300]) / 1000
    for name, power in (("gamma", 1.0), ("sqrt_gamma", 0.5)):
        process = on_schedule(Process(TRAINED, noise_input={"name": name, "scale": 500.0}), {
            "name": "betas", "betas": np.linspace(1e-4, 0.09, 1000),
        })  # fmt: skip
        np.testing.assert_allclose(process.noise_level(times), 500 * gammas[[1, 40, 300]] ** power, rtol=2e-5)


@pytest.mark.parametrize(("told", "factor"), [("log_snr", -2.0), ("log_sigma", 0.25)])
def test_logarithms_of_the_level_may_come_from_another_schedule(told, factor):
    process = on_schedule(Process("edm", "edm", noise_input=told), {"name": "edm", "sigma_max": 40.0})
    np.testing.assert_allclose(process.noise_level(jnp.array([0.5])), factor * np.log(40 * 0.5**7), rtol=1e-5)


def test_published_ends_of_the_schedules():
    trained = Process(TRAINED).schedule.log_snr(np.array(1.0))
    assert 1 / (1 + np.exp(-trained)) == pytest.approx(4.3859782e-5, rel=1e-6)
    sampled = on_schedule(Process(TRAINED, noise_input="sqrt_gamma"), {
        "name": "linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.09,
    })  # fmt: skip
    assert np.exp(sampled.schedule.log_snr(np.array(1.0))) == pytest.approx(6.6e-21, rel=0.02)


def _gaussian(process, mean=0.3, std=0.5):
    """The exact denoiser of N(mean, std^2), as a network that is told 1000 sqrt(gamma) and predicts eps."""

    def apply(params, x, level, cond=None):
        alpha = (level / 1000)[:, None]
        sigma2 = 1 - alpha**2
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma2) * (x - alpha * mean)
        return (x - alpha * x0) / jnp.sqrt(sigma2)

    return process.bind(apply, {})


@pytest.mark.parametrize(("steps", "end"), [(60, 0.2), (250, 0.05)])
def test_one_network_samples_the_data_on_any_schedule(steps, end):
    process = Process(TRAINED, variance="fixed_large", noise_input="sqrt_gamma")
    other = on_schedule(process, {"name": "betas", "betas": np.linspace(1e-4, end, steps)})
    draws = sample(_gaussian(other), solvers.ddpm(), grids.uniform(steps), jax.random.key(0), (20_000, 1))
    assert abs(float(draws.mean()) - 0.3) < 0.02 and abs(float(draws.std()) - 0.5) < 0.03


def test_the_trained_schedule_given_again_changes_nothing():
    process = Process(TRAINED, variance="fixed_large", noise_input="sqrt_gamma")
    again = on_schedule(process, {"name": "betas", "betas": np.linspace(1e-6, 1e-2, 2000)})
    draw = lambda p: sample(_gaussian(p), solvers.ddpm(), grids.uniform(20), jax.random.key(0), (64, 3))  # noqa: E731
    np.testing.assert_array_equal(draw(process), draw(again))


def test_the_reverse_variance_is_one_minus_alpha():
    betas = np.linspace(1e-4, 0.3, 50)
    process = Process({"name": "betas", "betas": betas}, variance="fixed_large")
    one = jnp.zeros((1, 1))
    for step in (2, 10, 50):
        found = process.reverse_log_variance(Denoised(one, one), jnp.array([(step - 1) / 50]), jnp.array([step / 50]))
        assert float(jnp.exp(found)[0, 0]) == pytest.approx(betas[step - 1], rel=1e-4)


@pytest.mark.parametrize("told", ["rescaled_timestep", "timestep"])
def test_a_network_that_is_told_steps_has_one_schedule(told):
    with pytest.raises(ConfigError, match=f"this one is told '{told}'.*noise_input 'sqrt_gamma'"):
        on_schedule(Process(TRAINED, noise_input=told), "linear")


def test_bad_schedules_and_samplers():
    with pytest.raises(ConfigError, match="of the family 've'"):
        on_schedule(Process(TRAINED, noise_input="gamma"), "edm")
    with pytest.raises(ConfigError, match="needs a variance-preserving chain"):
        PiecewiseUniform().sample(Process("cosine_continuous"), jax.random.key(0), 4, {})
    with pytest.raises(ConfigError, match="'gamma', 'sqrt_gamma'"):
        PiecewiseUniform("gama")


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_loss_over_some_positions_is_their_average(distance):
    x0, where = jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 1), bool).at[0, :1].set(True).at[1].set(True)
    # A network that says 0 has the error eps: seen where it counts alone, and all of it otherwise.
    apply = lambda params, x, level, cond: jnp.where(where, 0.0 * x, 1e6)  # noqa: E731
    key = jax.random.key(0)
    _, output = losses.denoising(Process("cosine"), apply, {}, x0, key, distance=distance, where=where)
    _, whole = losses.denoising(Process("cosine"), lambda *_: 0.0 * x0, {}, x0, key, distance=distance)
    assert float(output.per_example[1]) == pytest.approx(float(whole.per_example[1]), rel=1e-6)
    eps = jax.random.normal(losses.named(key, "noise"), x0.shape)[0, :1]
    expected = jnp.abs(eps).mean() if distance == "l1" else (eps**2).mean()
    assert float(output.per_example[0]) == pytest.approx(float(expected), rel=1e-5)
