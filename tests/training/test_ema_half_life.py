"""EDM's average: a half-life in images, ramped up."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.training import ema
from tests.training import tiny


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


@pytest.mark.parametrize("fields", [(0, 512), (5e5, 0), (5e5, 512, -1)])
def test_misfits_are_named(fields):
    with pytest.raises(ConfigError, match="needs images > 0, batch_size >= 1 and ramp >= 0"):
        ema.HalfLife(*fields)


def test_the_batch_is_the_runs_own():
    average = {"name": "half_life", "images": 100}
    assert tiny.prepare(training__ema=[average]).averages[0].batch_size == tiny.CONFIG["data"]["batch_size"] == 16
    with pytest.raises(ConfigError, match="batches of 8, but data.batch_size is 16"):
        tiny.prepare(training__ema=[{**average, "batch_size": 8}])
