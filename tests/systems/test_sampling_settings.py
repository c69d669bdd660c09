"""The settings of a sampling run: conventions, overrides, and values that cannot be."""

from __future__ import annotations

import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Sampling


def test_the_two_conventions_of_the_scale():
    assert Sampling(guidance_weight=0.3).guidance == pytest.approx(1.3) and Sampling(guidance_weight=0).guidance == 1
    assert Sampling.from_config({"guidance": 2.0}, guidance_weight=0.5).guidance == 1.5
    assert Sampling.from_config({"guidance_weight": 0.5}, guidance=3.0).guidance == 3.0
    again = Sampling.from_config(Sampling(guidance_weight=1.0))
    assert again.guidance == 2.0 and again.settings()["guidance_weight"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": "statc"}, "did you mean 'static'"),
        ({"solver": "dim"}, "did you mean 'ddim'"),
        ({"guidance": 2.0, "guidance_weight": 3.0}, "guidance 2 and guidance_weight 3 say the same thing"),
        ({"classifier_scale": -1.0}, "classifier_scale must not be negative"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"aug_level": 1.5}, r"aug_level must lie in \[0, 1\]"),
        ({"percentile": 0.0}, r"percentile must lie in \(0, 100\]"),
        *[
            ({"guidance_interval": interval}, "guidance_interval must be two noise levels")
            for interval in ((3, 1), [1, 2, 3], (-1.0, 2.0), 4.0, ("1", "2"))
        ],
    ],
)
def test_values_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**fields)


def test_unknown_fields_are_named():
    with pytest.raises(ConfigError, match="sampling has no field 'guidence'; did you mean 'guidance'"):
        Sampling.from_config({"guidence": 1.0})
