"""Values held to annotations: what a configuration may say for a field, and the one line for what it may not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from diffusion_jax import registry, values
from diffusion_jax.errors import ConfigError
from diffusion_jax.values import Count, Fraction, Natural, NonNegative, Percentile, Positive, Probability

GOOD = [
    (int, 3), (int, np.int64(3)), (float, 3), (float, 2.5), (float, np.float32(2.5)), (bool, False), (str, "a"),
    (Count, 1), (Natural, 0), (Positive, 1e-9), (NonNegative, 0), (Fraction, 1), (Probability, 0.999), (Percentile, 99.5),
    (int | None, None), (Sequence[int], []), (Sequence[int], [1, 2]), (tuple[int, int], [1, 2]), (Sequence[float], (1, 2.5)),
    (int | tuple[int, int], (8, 8)), (Mapping[str, int], {"a": 1}), (Literal["conv", 2], 2), (Any, "anything"),
    (int, np.zeros(3)), (Sequence[int], range(3)),  # which no configuration can say
]  # fmt: skip

BAD = [
    (int, 8.0, "a whole number, got 8.0"), (int, True, "a whole number, got True"), (int, "8", "a whole number, got '8'"),
    (float, "high", "a number, got 'high'"), (float, True, "a number, got True"), (float, math.nan, "a number, got nan"),
    (float, math.inf, "a number, got inf"), (bool, "no", "True or False, got 'no'"), (bool, 0, "True or False, got 0"),
    (str, 2024, "a text, got 2024"), (str, None, "a text, got None"), (str | None, 1, "a text, or None, got 1"),
    (Count, 0, "a whole number at least 1, got 0"), (Count, 2.5, "a whole number at least 1, got 2.5"),
    (Positive, 0, "a number above 0, got 0"), (Positive, math.nan, "a number above 0, got nan"),
    (NonNegative, -1, "a number at least 0, got -1"), (Fraction, 1.5, r"a number in \[0, 1\], got 1.5"),
    (Probability, 2, r"a number in \[0, 1\), got 2"), (Percentile, 0.995, r"a number in \[1, 100\], got 0.995"),
    (Sequence[float], 2, "a list of numbers, got 2"), (Sequence[float], "12", "a list of numbers, got '12'"),
    (Sequence[Count], [1, 0], r"a list of whole numbers at least 1, got \[1, 0\]"),
    (tuple[int, int], [1, 2, 3], r"\[a whole number, a whole number\], got \[1, 2, 3\]"),
    (Mapping[str, int], [1], r"a mapping of fields, got \[1\]"), (int, [1], r"a whole number, got \[1\]"),
    (Literal["conv", "resblock"], "resblok", "one of 'conv', 'resblock', got 'resblok'; did you mean 'resblock'"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), GOOD, ids=str)
def test_values_that_fit(annotation, value):
    values.check("field", annotation, value)


@pytest.mark.parametrize(("annotation", "value", "message"), BAD, ids=str)
def test_values_that_do_not(annotation, value, message):
    with pytest.raises(ConfigError, match=f"^field must be {message}"):
        values.check("field", annotation, value)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("network", {"name": "unet", "image_size": 8.0}, "'unet': image_size must be a positive whole number of pixels"),
        (
            "network",
            {"name": "unet", "image_size": 8, "multipliers": 2},
            "multipliers must be a list of numbers above 0",
        ),
        ("network", {"name": "unet_adm64", "dropout": "high"}, "'unet_adm64': dropout must be a number in"),
        ("source", {"name": "folder", "path": 2024}, "path must be a text, got 2024"),
        ("schedule", {"name": "linear", "num_steps": 2.5}, "num_steps must be a whole number.*got 2.5"),
        ("schedule", {"name": "linear", "beta_end": math.nan}, "beta_end must be a number.*got nan"),
        ("conditioner", {"name": "labels", "num_classes": 0}, "num_classes must be a whole number at least 1, got 0"),
        ("conditioner", {"name": "labels", "num_classes": 3, "drop": 2}, r"drop must be a number in \[0, 1\], got 2"),
        ("codec", 7, "a codec must be a name, or a mapping with the key 'name' and fields, got 7"),
        ("conditioner", {"name": "image", "drop": "often"}, r"drop must be a number in"),  # inherited
        ("ema", {"name": "constant", "decay": "0.9"}, "decay must be a number.*got '0.9'"),
    ],
    ids=str,
)
def test_the_registry_holds_every_part_to_its_annotations(kind, config, message):
    """The message names the part and the field, before the part is built."""
    import diffusion_jax.systems
    import diffusion_jax.training  # noqa: F401

    with pytest.raises(ConfigError, match=message):
        registry.build(kind, config)


def test_every_field_of_every_part_says_what_it_may_hold():
    """A field without an annotation would be held to nothing."""
    import diffusion_jax.evaluate  # noqa: F401

    silent = [
        f"{kind} {name!r}: {field}"
        for kind in registry.kinds()
        for name in registry.known(kind)
        for field, parameter in registry.inspect.signature(registry.lookup(kind, name)).parameters.items()
        if parameter.annotation is parameter.empty
    ]
    assert not [line for line in silent if "test" not in line]


def test_a_part_registered_again_from_its_place_takes_the_place(tmp_path):
    source = "from diffusion_jax.registry import register\n@register('a test', 'own')\ndef grid(): return NUMBER\n"
    for number in (1, 2):
        exec(compile(source, str(tmp_path / "own.py"), "exec"), {"__name__": "own", "NUMBER": number})
        assert registry.build("a test", "own") == number
    with pytest.raises(ConfigError, match="'own' is registered twice: grid of .*own.py and grid of .*other.py"):
        exec(compile(source, str(tmp_path / "other.py"), "exec"), {"__name__": "other"})
