"""Averages of the parameters against their closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.training import ema
from tests.training import tiny


def weights(average, steps):
    """The weight of each step's parameters in the average after the last, and of the initial ones (first)."""
    rows = jnp.eye(steps + 1)
    update = lambda found, step: (ema.update(average, found, rows[step], step), None)  # noqa: E731
    return np.asarray(jax.jit(lambda: jax.lax.scan(update, rows[0], jnp.arange(1, steps + 1))[0])())


def test_constant():
    found = weights(ema.Constant(0.9, warmup=False), 20)
    ages = np.arange(20, -1, -1)
    expected = 0.1 * 0.9**ages
    expected[0] = 0.9**20  # the initial parameters have the rest
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_warm_up_forgets_the_initial_parameters():
    """The product of (1 + k) / (10 + k) is 10! / ((n + 2) ... (n + 10)) up to its first factor."""
    steps = 100
    expected = np.prod([(1 + k) / (10 + k) for k in range(1, steps + 1)])
    assert weights(ema.Constant(0.9999), steps)[0] == pytest.approx(expected, rel=1e-4) and expected < 1e-10
    assert weights(ema.Constant(0.9999, warmup=False), steps)[0] > 0.98
    found = weights(ema.Constant(0.9999), steps)
    assert found.sum() == pytest.approx(1, rel=1e-5)
    assert float(ema.Constant(0.9).share(jnp.int32(1000))) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_power_profile(sigma_rel):
    """The weights are differences of (k / n)^(g + 1), and their relative standard deviation is what was asked for."""
    average, steps = ema.Power(sigma_rel), 1000
    found, g = weights(average, steps), ema.power_exponent(sigma_rel)
    times = np.arange(steps + 1) / steps
    np.testing.assert_allclose(found[1:], np.diff(times ** (g + 1)), rtol=2e-3, atol=1e-6)
    mean = (found * times).sum()
    assert np.sqrt((found * (times - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=0.01)
    assert found[0] == 0


def test_published_exponents():
    """Karras et al. 2024, section 3.1: 0.05 and 0.10 are about 16.97 and 6.94."""
    assert ema.power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert ema.power_exponent(0.10) == pytest.approx(6.94, abs=0.005)


def test_late_steps_keep_their_digits():
    g = ema.power_exponent(0.05)
    for step in (10**5, 10**6, 10**7):
        exact = 1 - (1 - np.longdouble(1) / step) ** (g + 1)
        assert float(ema.Power(0.05).share(jnp.int32(step))) == pytest.approx(float(exact), rel=1e-5)


def test_from_config():
    averages = ema.from_config([{"name": "constant", "decay": 0.999}, {"name": "power", "sigma_rel": 0.1}])
    assert [average.label for average in averages] == ["constant_0.999", "power_0.1"]
    for bad, message in [
        ([{"name": "constant"}, {"name": "constant", "warmup": False}], "twice"),
        ([{"name": "constant", "decay": 1.0}], r"\[0, 1\)"),
        ([{"name": "power", "sigma_rel": 0.5}], "sigma_rel"),
        ([{"name": "constant", "deacy": 0.9}], "did you mean 'decay'"),
        ([{"name": "powre"}], "did you mean 'power'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ema.from_config(bad)


# EDM's average: a half-life in images, ramped up ----------------------------------------------------------------------------


def kept(average, step):
    return 1 - float(average.share(jnp.int32(step)))


def test_a_share_is_halved_after_its_images():
    average = ema.HalfLife(500_000, 512, ramp=0)
    updates = 500_000 / 512
    assert kept(average, 7) ** updates == pytest.approx(0.5, rel=2e-3)
    assert kept(average, 7) == pytest.approx(2 ** (-512 / 500_000), abs=1e-7)


def test_the_ramp():
    """Half-lives of a twentieth of the images seen before the update, until they are the whole one."""
    average = ema.HalfLife(500_000, 512)
    assert kept(average, 1) == 0  # the parameters themselves
    for step in (2, 41, 1000):
        assert kept(average, step) == pytest.approx(2 ** (-512 / (0.05 * 512 * (step - 1))), rel=1e-5)
    full = 500_000 / 0.05 / 512 + 1
    assert kept(average, int(full) + 2) == pytest.approx(2 ** (-512 / 500_000), rel=1e-6)
    assert kept(average, int(0.5 * full)) < kept(average, int(full) + 2)


def test_by_name_and_label():
    built = ema.from_config([{"name": "half_life", "images": 5e5, "batch_size": 512}, {"name": "half_life", "images": 1e6,
                                                                                      "batch_size": 512}])  # fmt: skip
    assert [average.label for average in built] == ["half_life_500000", "half_life_1e+06"]
    assert np.isfinite(float(built[0].share(jnp.int32(10**7))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "half_life", "images": 0}, "ema 'half_life': images must be a number above 0"),
        ({"name": "half_life", "images": 5e5, "batch_size": 0}, "batch_size must be a whole number at least 1"),
        ({"name": "half_life", "images": 5e5, "ramp": -1}, "ramp must be a number at least 0"),
        ({"name": "constant", "decay": 1}, "ema 'constant': decay must be a number in"),
        ({"name": "power", "sigma_rel": 0.28}, "ema 'power': sigma_rel must be a number in"),
    ],
)
def test_misfits_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        ema.from_config([fields])


def test_the_batch_is_the_runs_own():
    average = {"name": "half_life", "images": 100}
    assert tiny.prepare(training__ema=[average]).averages[0].batch_size == tiny.CONFIG["data"]["batch_size"] == 16
    with pytest.raises(ConfigError, match="batches of 8, but data.batch_size is 16"):
        tiny.prepare(training__ema=[{**average, "batch_size": 8}])
