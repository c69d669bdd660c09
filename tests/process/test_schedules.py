"""Schedules: published numbers, identities of the families, inverses, precision."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, edm_design, schedules, sub_vp
from diffusion_jax.registry import build

ALL = {
    "linear": schedules.linear(),
    "linear_4000": schedules.linear(4000),
    "scaled_linear": schedules.scaled_linear(),
    "quadratic": schedules.quadratic(),
    "constant": schedules.constant(400),
    "warmup": schedules.warmup(),
    "jsd": schedules.jsd(200),
    "cosine": schedules.cosine(),
    "cosine_continuous": schedules.cosine_continuous(),
    "edm": schedules.edm(),
    "vp_sde": schedules.vp_sde(),
    "subvp_sde": sub_vp.subvp_sde(),
    "vp_sde_fitted": schedules.vp_sde(**edm_design.vp_constants()),
    "straight_line": schedules.straight_line(),
    "shifted": schedules.shifted("cosine_continuous", size=256),
    "zero_terminal_snr": schedules.zero_terminal_snr({"name": "linear", "num_steps": 200}),
}
every = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


def alpha_bar(schedule, index):
    t = (np.asarray(index) + 1) / schedule.num_steps
    return schedule.alpha_sigma(t)[0] ** 2


def test_published_tables():
    """Values of the published chains in float64."""
    linear, cosine = schedules.linear(), schedules.cosine()
    expected = [0.9999, 0.99978009, 0.89701815, 0.52408537, 0.078587243, 0.0033505504, 4.1181936e-5, 4.0358298e-5]
    np.testing.assert_allclose(alpha_bar(linear, [0, 1, 99, 249, 499, 749, 998, 999]), expected, rtol=1e-7)
    np.testing.assert_allclose(linear.log_snr(np.array([1e-3, 1.0])), [9.2102404, -10.1176733], rtol=1e-7)
    np.testing.assert_allclose(alpha_bar(schedules.linear(4000), 3999), 4.2466523e-5, rtol=1e-7)
    np.testing.assert_allclose(
        alpha_bar(cosine, [0, 499, 998, 999]), [0.99995872, 0.49384359, 2.4287669e-6, 2.4287669e-9], rtol=1e-7
    )
    np.testing.assert_allclose(alpha_bar(schedules.cosine(4000), [1999, 3998]), [0.49384359, 1.5179805e-7], rtol=1e-7)
    np.testing.assert_allclose(alpha_bar(schedules.linear(2000, 2e-6, 2e-2), 1999), 4.3859782e-5, rtol=1e-6)
    np.testing.assert_allclose(alpha_bar(schedules.linear(1000, 1e-4, 0.09), 999), 6.6e-21, rtol=1e-2)
    beta = lambda chain, index: 1 - alpha_bar(chain, index) / alpha_bar(chain, index - 1)  # noqa: E731
    np.testing.assert_allclose([beta(cosine, 998), beta(cosine, 999)], [0.74999939, 0.999], rtol=1e-7)
    ends = [1 - alpha_bar(cosine, 0), 1 - alpha_bar(schedules.cosine(4000), 0)]
    np.testing.assert_allclose(ends, [4.1284225e-5, 9.8658188e-6], rtol=1e-7)
    zero = schedules.zero_terminal_snr("linear")
    np.testing.assert_allclose(alpha_bar(zero, [0, 500, 998, 999]), [0.9999, 0.0752462, 4.2133e-9, 0], rtol=1e-5)


def test_other_betas_of_ddpm():
    """Products of betas written out, and jsd's alpha_bar, which falls by 1/T a step to 0."""
    np.testing.assert_allclose(alpha_bar(schedules.constant(), [0, 99]), [0.98, 0.98**100], rtol=1e-12)
    np.testing.assert_allclose(alpha_bar(schedules.jsd(50), np.arange(50)), 1 - np.arange(1, 51) / 50, atol=1e-12)
    for fraction in (0.1, 0.5):
        chain, rising = schedules.warmup(fraction=fraction), int(1000 * fraction)
        betas = [1e-4 + (0.02 - 1e-4) * min(i / (rising - 1), 1) for i in range(1000)]
        for index in (0, 1, rising // 2, rising - 1, rising, 600):
            np.testing.assert_allclose(alpha_bar(chain, index), np.prod(1 - np.array(betas[: index + 1])), rtol=1e-10)
    roots = np.linspace(0.01, 0.02**0.5, 1000)
    np.testing.assert_allclose(alpha_bar(schedules.quadratic(), 499), np.prod(1 - roots[:500] ** 2), rtol=1e-10)


def test_published_levels():
    """sigma / alpha of the VP-SDE, and the EDM grid's ends."""
    level = lambda schedule, t: np.exp(-0.5 * schedule.log_snr(np.float64(t)))  # noqa: E731
    vp = schedules.vp_sde()
    np.testing.assert_allclose([level(vp, 1e-3), level(vp, 1.0)], [0.010485993, 152.16697], rtol=1e-6)
    np.testing.assert_allclose([level(schedules.edm(), 1.0), level(schedules.edm(), 0.5)], [80.0, 80 / 2**7], rtol=1e-12)


@every
def test_time_runs_from_data_to_noise(schedule):
    t = np.linspace(0, 1, 2003)
    log_snr = schedule.log_snr(t)
    assert log_snr[0] == math.inf and (np.diff(log_snr[1:]) < 0).all()
    alpha, sigma = schedule.alpha_sigma(jnp.zeros(1))
    assert alpha == 1 and sigma == 0


@every
@given(t=st.floats(1e-3, 1 - 1e-3))
def test_inverse(schedule, t):
    assert abs(schedule.inverse(schedule.log_snr(np.float64(t))) - t) < 1e-9
    assert abs(float(schedule.inverse(schedule.log_snr(jnp.float32(t)))) - t) < 2e-5


@every
@given(t=st.floats(1e-3, 0.999) | st.just(1.0))
def test_families_and_precision(schedule, t):
    """alpha^2 + sigma^2 = 1, alpha^2 + sigma = 1, alpha = 1, or alpha + sigma = 1; and float32 follows float64."""
    alpha, sigma = schedule.alpha_sigma(np.float64(t))
    kept = {"vp": alpha**2 + sigma**2, "subvp": alpha**2 + sigma, "ve": alpha, "linear": alpha + sigma}[schedule.family]
    assert abs(kept - 1) < 1e-12
    if math.isfinite(schedule.log_snr(np.float64(t))):
        assert abs(math.log(alpha**2 / sigma**2) - schedule.log_snr(np.float64(t))) < 1e-9
    rounded = np.float64(np.float32(t))
    exact, single = schedule.alpha_sigma(rounded), schedule.alpha_sigma(jnp.float32(t))
    np.testing.assert_allclose(np.array(single), np.array(exact), rtol=2e-4, atol=1e-7)  # times near a step are the step


def test_the_sub_vp_sde():
    """Closed forms of its marginals; the noise of a short step forward is beta (1 - e^(-2 B)) dt, the SDE's own; its drops."""
    schedule, t, step = sub_vp.subvp_sde(), np.array([1e-3, 0.05, 0.3, 0.8, 0.99]), 1e-7
    integral = lambda t: 9.95 * t**2 + 0.1 * t  # noqa: E731
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(alpha, np.exp(-integral(t) / 2), rtol=1e-12)
    np.testing.assert_allclose(sigma, -np.expm1(-integral(t)), rtol=1e-12)
    added = -np.expm1(-schedule.drop(t, t + step)) * schedule.alpha_sigma(t + step)[1] ** 2
    np.testing.assert_allclose(added / step, (19.9 * t + 0.1) * -np.expm1(-2 * integral(t)), rtol=1e-3)
    exact = schedule.log_snr(t) - schedule.log_snr(t + 1e-3)
    np.testing.assert_allclose(schedule.drop(t, t + 1e-3), exact, rtol=1e-9)
    ends = np.array([[0.01, 1.0], [0.001, 0.7]]).T
    np.testing.assert_allclose(schedule.drop(*ends), schedule.log_snr(ends[0]) - schedule.log_snr(ends[1]), rtol=1e-12)
    single = np.float64(np.float32(t)), np.float64(np.float32(t + 1e-3))
    np.testing.assert_allclose(schedule.drop(*map(jnp.float32, single)), schedule.drop(*single), rtol=2e-6)
    assert schedule.drop(0.0, 0.5) == math.inf


@given(steps=st.integers(2, 3000), data=st.data())
def test_chains_are_exact_at_their_steps(steps, data):
    """In float32 too, whatever the rounding of i / T: the table's own value."""
    schedule = schedules.linear(max(steps, 25))
    index = data.draw(st.integers(1, schedule.num_steps))
    betas = np.linspace(0.1 / schedule.num_steps, 20 / schedule.num_steps, schedule.num_steps)
    expected = np.cumprod(1 - betas)[index - 1]
    t = np.float32(index) / np.float32(schedule.num_steps)
    np.testing.assert_allclose(float(schedule.alpha_sigma(jnp.float32(t))[0]) ** 2, expected, rtol=2e-5)
    np.testing.assert_allclose(schedule.alpha_sigma(np.float64(index / schedule.num_steps))[0] ** 2, expected, rtol=1e-10)


def test_steps_and_times():
    """Step i of T, from 0, is at (i + 1) / T; and back, whatever the rounding."""
    chain, index = schedules.linear(350), np.arange(350)
    for steps in (index, jnp.asarray(index)):
        t = chain.time_of(steps)
        np.testing.assert_allclose(t, (index + 1) / 350, rtol=1e-7)
        np.testing.assert_array_equal(chain.index_of(t), index)
    assert chain.index_of(0.0) == 0 and chain.index_of(jnp.float32(1.0)) == 349
    with pytest.raises(ConfigError, match="'edm' is continuous and has no steps"):
        schedules.edm().time_of(3)


@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.002, 80.0), (0.0105, 152.17), (0.002, 0.5), (0.01, 500.0)])
def test_vp_constants_of_two_levels(sigma_min, sigma_max):
    """EDM's fit, whose beta_min is below 0 for its own levels: both ends, the formula between them, and the way back."""
    found = edm_design.vp_constants(sigma_min, sigma_max)
    beta_d = 2 * (np.log1p(sigma_min**2) / 1e-3 - np.log1p(sigma_max**2)) / (1e-3 - 1)
    beta_min = np.log1p(sigma_max**2) - 0.5 * beta_d
    np.testing.assert_allclose([found["beta_max"] - found["beta_min"], found["beta_min"]], [beta_d, beta_min], rtol=1e-9)
    schedule, t = schedules.vp_sde(**found), np.geomspace(1e-3, 1, 200)
    level = np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t))
    np.testing.assert_allclose(level[[0, -1]], [sigma_min, sigma_max], rtol=1e-9)
    np.testing.assert_allclose(np.exp(-0.5 * schedule.log_snr(t)), level, rtol=1e-9)
    np.testing.assert_allclose(schedule.inverse(schedule.log_snr(t)), t, rtol=1e-7)
    np.testing.assert_allclose(schedule.inverse(schedule.log_snr(jnp.asarray(t, jnp.float32))), t, rtol=2e-5, atol=1e-6)
    values = schedule.log_snr(np.linspace(0, 1, 5000))
    assert not np.isnan(values).any() and (values[:2] == np.inf).any() and (np.diff(values[values < np.inf]) < 0).all()


@pytest.mark.parametrize(
    "constants", [(-0.1, 20.0), (0.1, -0.2), (0.0, 0.0), (-1.0, -2.0), (math.nan, 20.0), (0.1, math.inf), (5.0, -1.0)]
)
def test_vp_constants_that_make_no_process(constants):
    with pytest.raises(ConfigError, match="vp_sde.*(not finite and falling|must be a number)") as caught:
        schedules.vp_sde(*constants)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        build("noise_input", {"name": "vp_time", "beta_min": constants[0], "beta_max": constants[1]})


def test_vp_constants_may_fall():
    """More noise early than late is a process too, and so is an even share."""
    for constants in ((20.0, 0.1), (5.0, 5.0), (5.0, 0.0), (0.0, 10.0), (0.1, 400.0)):
        schedule = schedules.vp_sde(*constants)
        values = schedule.log_snr(np.linspace(1e-3, 1, 500))
        assert np.isfinite(values).all() and (np.diff(values) < 0).all()
        assert np.isfinite(np.asarray(schedule.log_snr(jnp.linspace(1e-3, 1, 500)))).all()


def test_shifts():
    """Shifting the log-SNR by 2 ln(64 / size); the straight line's shift is its published warp of time."""
    plain, moved = schedules.cosine_continuous(), schedules.shifted("cosine_continuous", size=256)
    t = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(moved.log_snr(t) - plain.log_snr(t), 2 * math.log(64 / 256), rtol=1e-12)
    shift = 3.0
    warped = shift * t / (1 + (shift - 1) * t)
    np.testing.assert_allclose(schedules.straight_line(shift).alpha_sigma(t)[1], warped, rtol=1e-12)


def test_zero_terminal_snr_tables():
    betas = np.append(np.linspace(1e-4, 0.02, 99), 1.0)
    schedule = schedules.from_betas(betas)
    assert schedule.log_snr(1.0) == -math.inf and schedule.alpha_sigma(jnp.float32(1.0)) == (0.0, 1.0)
    t = np.linspace(0.985, 0.9999, 40)
    assert (np.diff(schedule.log_snr(t)) < 0).all()
    np.testing.assert_allclose(schedule.inverse(schedule.log_snr(t)), t, rtol=1e-9)
    with pytest.raises(ConfigError, match="undefined at zero SNR"):
        Process(schedule, prediction="eps")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.from_betas([0.1, 1.5]), "beta 1 of 2 is 1.5"),
        (lambda: schedules.from_betas([1.0, 0.1]), "only the last may be 1"),
        (lambda: schedules.from_betas([[0.1]]), "one-dimensional"),
        (lambda: schedules.edm(sigma_min=2, sigma_max=1), "sigma_min < sigma_max"),
        (lambda: schedules.straight_line(-1), "must be a number above 0"),
        (lambda: schedules.shifted("linear"), "needs one of"),
        (lambda: schedules.zero_terminal_snr("edm"), "'edm' is continuous"),
        (lambda: Process("cosin"), "did you mean 'cosine'"),
        (lambda: Process("linear", prediction="epsilon"), "did you mean 'eps'|known"),
        (lambda: Process("linear", variance="fixed_smal"), "did you mean 'fixed_small'"),
        (lambda: Process("edm", noise_input="timestep"), "no discrete timesteps"),
        (lambda: Process({"name": "linear", "steps": 3}), "did you mean 'num_steps'"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
