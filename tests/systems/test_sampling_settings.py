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
        ({"classifier_scale": -1.0}, "classifier_scale must be a number at least 0, got -1.0"),
        ({"steps": 0}, "steps must be a whole number at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number at least 1, got 2.5"),
        ({"steps": True}, "steps must be a whole number at least 1, got True"),
        ({"aug_level": 1.5}, r"aug_level must be a number in \[0, 1\]"),
        ({"percentile": 0.995}, r"percentile must be a number in \[1, 100\], got 0.995"),
        ({"guidance": float("nan")}, "guidance must be a number, got nan"),
        ({"guidance": float("inf")}, "guidance must be a number, got inf"),
        ({"guidance_weight": float("nan")}, "guidance_weight must be a number, or None, got nan"),
        ({"guidance": "high"}, "guidance must be a number, got 'high'"),
        ({"truncated": "no"}, "truncated must be True or False, got 'no'"),
        ({"classifier": 2024}, "classifier must be a text, or None, got 2024"),
        ({"solver": {"name": "ddim", "eta": "high"}}, "eta must be a number"),
        ({"grid": {"name": "karras", "rho": "7"}}, "rho must be a number"),
        ({"guidance_interval": (3, 1)}, "guidance_interval must be two levels, low < high, got 3 and 1"),
        *[
            (
                {"guidance_interval": interval},
                "guidance_interval must be \\[a number at least 0, a number at least 0\\], or None",
            )
            for interval in ([1, 2, 3], (-1.0, 2.0), 4.0, ("1", "2"))
        ],
    ],
)
def test_values_that_cannot_be(fields, message):
    for make in (lambda: Sampling(**fields), lambda: Sampling.from_config(fields)):
        with pytest.raises(ConfigError, match=message):
            make()


def test_no_threshold_has_two_names():
    """None in a recipe, and none on a command line; a value that is left out is neither."""
    assert Sampling(threshold=None) == Sampling(threshold="none") == Sampling.from_config({"threshold": None})
    assert Sampling.from_config({"threshold": "dynamic"}, threshold="none").settings()["threshold"] == "none"
    assert Sampling.from_config({"threshold": "dynamic"}, threshold=None).threshold == "dynamic"
    assert Sampling(guidance_interval=[0.2, 3]).guidance_interval == [0.2, 3]


def test_unknown_fields_are_named():
    with pytest.raises(ConfigError, match="sampling has no field 'guidence'; did you mean 'guidance'"):
        Sampling.from_config({"guidence": 1.0})
