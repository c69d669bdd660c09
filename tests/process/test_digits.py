"""Digits: tables of float32 within 1e-6 of float64, differences of close levels, and float64 where it is asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import Categorical, Denoised, Process, edm_design, losses, schedules
from diffusion_jax.process.likelihood import bits_per_dim

SCHEDULES = {
    "linear": schedules.linear(),
    "linear_4000": schedules.linear(4000),
    "scaled_linear": schedules.scaled_linear(),
    "cosine": schedules.cosine(),
    "jsd": schedules.jsd(200),
    "zero_terminal_snr": schedules.zero_terminal_snr("linear"),
    "iddpm_levels": edm_design.iddpm_levels(),
    "cosine_continuous": schedules.cosine_continuous(),
    "shifted": schedules.shifted("cosine_continuous", size=256),
    "edm": schedules.edm(),
    "ve": edm_design.ve(),
    "vp_sde": schedules.vp_sde(),
    "vp_sde_fitted": schedules.vp_sde(**edm_design.vp_constants()),
    "straight_line": schedules.straight_line(3.0),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def steps_of(schedule):
    """Times in float64, and those times in float32: the steps of a chain, or numbers that both hold exactly."""
    if schedule.num_steps:
        exact = np.arange(1, schedule.num_steps + 1) / schedule.num_steps
        return exact, jnp.asarray(exact, jnp.float32)
    exact = np.arange(1, 1024) / 1024
    exact = exact[exact > schedule.t_min]
    return exact, jnp.asarray(exact, jnp.float32)


@every
def test_tables_of_float32_are_those_of_float64(schedule):
    """alpha, sigma, both variances of a step and the posterior's two weights, to 1e-6 (logarithms absolutely, above 1)."""
    exact, single = steps_of(schedule)
    process = Process(schedule, prediction="v")
    for found, wanted in zip(process.alpha_sigma(single), schedule.alpha_sigma(exact), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    (alpha_s, alpha_t), (sigma_s, sigma_t) = ((c[:-1], c[1:]) for c in schedule.alpha_sigma(exact))
    lost = -np.expm1(-schedule.drop(exact[:-1], exact[1:]))
    times = (single[:-1], single[1:])
    small, large = process._log_variance_bounds(*times, None)
    np.testing.assert_allclose(small, np.log(lost * sigma_s**2), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(large, np.log(lost * sigma_t**2), rtol=1e-6, atol=1e-6)
    ones, zeros = jnp.ones((len(exact) - 1, 1)), jnp.zeros((len(exact) - 1, 1))
    np.testing.assert_allclose(process.posterior(ones, zeros, *times)[0][:, 0], lost * alpha_s, rtol=1e-6)
    np.testing.assert_allclose(
        process.posterior(zeros, ones, *times)[0][:, 0], alpha_t / alpha_s * (sigma_s / sigma_t) ** 2, rtol=1e-6
    )


@every
def test_differences_keep_the_digits_that_levels_lose(schedule):
    """1 - SNR_t / SNR_s of neighbours is 2e-4 off by subtraction in float32; where longer steps lose nothing, both agree."""
    exact, single = steps_of(schedule)
    wanted = schedule.drop(exact[:-1], exact[1:])
    with np.errstate(invalid="ignore"):
        subtracted = -np.diff(schedule.log_snr(exact))
    np.testing.assert_allclose(wanted, subtracted, rtol=1e-9)
    found = np.asarray(schedule.drop(single[:-1], single[1:]))
    np.testing.assert_allclose(found, wanted, rtol=5e-7)
    np.testing.assert_allclose(-np.expm1(-found), -np.expm1(-wanted), rtol=5e-7)
    # Between the steps of a chain too, and over any distance, from data itself.
    early, late = np.array([0.30017, 0.31, 0.5]), np.array([0.30023, 0.7, 0.75])
    np.testing.assert_allclose(schedule.drop(early, late), schedule.log_snr(early) - schedule.log_snr(late), rtol=1e-9)
    assert schedule.drop(0.0, 0.5) == np.inf and schedule.drop(jnp.float32(0), jnp.float32(0.5)) == np.inf


def test_zero_snr_is_infinitely_far():
    for schedule in (SCHEDULES["zero_terminal_snr"], schedules.straight_line()):
        assert schedule.drop(0.5, 1.0) == np.inf and schedule.drop(jnp.float32(0.5), 1.0) == np.inf


@pytest.mark.parametrize("schedule", ["straight_line", schedules.linear(4000)])
def test_one_step_of_categories_keeps_its_digits(schedule):
    """1 - keep(t) / keep(s) of neighbours, against float64."""
    process, s, t = Categorical(5, schedule=schedule), np.arange(1, 2000) / 4000, np.arange(2, 2001) / 4000
    keep = (lambda t: 1 - t) if schedule == "straight_line" else (lambda t: schedule.alpha_sigma(t)[0] ** 2)
    stay, go = process._step(jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32))
    rtol = 2e-4 if schedule == "straight_line" else 2e-6  # the times themselves are rounded, of a chain they are not
    np.testing.assert_allclose(np.exp(np.float64(go)), 1 - keep(t) / keep(s), rtol=rtol)
    np.testing.assert_allclose(np.exp(np.float64(stay)), keep(t) / keep(s), rtol=1e-6)


# float64 ---------------------------------------------------------------------------------------------------------------


@every
def test_float64_is_kept_where_it_is_given(schedule):
    """All that a process offers, at times and data of float64, to 1e-12; float32 beside it stays float32."""
    exact, _ = steps_of(schedule)
    with jax.enable_x64(True):
        process, t = Process(schedule, prediction="v", variance="learned_range"), jnp.asarray(exact[[100, 150]])
        s, x = jnp.asarray(exact[[90, 110]]), jnp.ones((2, 3))
        found = process.alpha_sigma(t)
        np.testing.assert_allclose(np.asarray(found), schedule.alpha_sigma(np.asarray(t)), rtol=1e-12)
        np.testing.assert_allclose(process.drop(s, t), schedule.drop(np.asarray(s), np.asarray(t)), rtol=1e-12)
        denoised = Denoised(x, x, x)
        made = [
            process.log_snr(t), process.noise_level(t), schedule.inverse(process.log_snr(t)), process.diffuse(x, t, x),
            process.target(x, x, t), *process.posterior(x, x, s, t), process.reverse_log_variance(denoised, s, t),
            *process.corrupt(jax.random.key(0), x, t), *found,
        ]  # fmt: skip
        assert {str(each.dtype) for each in made} == {"float64"}
        single = jnp.float32(0.5)
        kept = [process.log_snr(single), process.corrupt(jax.random.key(0), jnp.ones((2, 3), jnp.float32), single)[1]]
        assert {str(each.dtype) for each in kept} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_and_bounds_follow_the_dtype_of_the_data(dtype):
    with jax.enable_x64(True):
        x0 = jnp.linspace(-1, 1, 24, dtype=dtype).reshape(2, 3, 4, 1)
        process = Process(schedules.linear(8, 1e-5, 2e-3), variance="learned_range")
        apply = lambda params, x, noise, cond: params * jnp.concatenate([x, x], -1)  # noqa: E731
        params = jnp.asarray(0.1, dtype)
        value, output = losses.denoising(process, apply, params, x0, jax.random.key(0), vlb_weight=0.001)
        assert {str(each.dtype) for each in (value, output.per_example, output.weighted, output.t)} == {dtype}
        if dtype == "float64":
            bound = bits_per_dim(process.bind(apply, params), x0, jax.random.key(0), clip=False)
            assert {str(part.dtype) for part in bound} == {dtype}
