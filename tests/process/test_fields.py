"""Fields of the parts of the mathematics: what they may hold, whoever gives them."""

from __future__ import annotations

import inspect
import math
from typing import Any, get_args

import pytest

import diffusion_jax.process  # noqa: F401  (registers the parts)
from diffusion_jax import registry
from diffusion_jax.errors import ConfigError

KINDS = ("schedule", "prediction", "weighting", "times", "levels", "pairs", "process", "noise_input")
FIELDS = [
    (kind, name, field)
    for kind in KINDS
    for name in registry.known(kind)
    for field in registry.fields(registry.lookup(kind, name))[0]
]
NEEDED = {"categorical": {"num_values": 2}, "shifted": {"schedule": "edm"}, "diffusion": {"schedule": "edm"}}


def kind_of(annotation: Any) -> Any:
    """The plain type of `Annotated[float, Range(0)]`, say, or of `float | None`."""
    inner = get_args(annotation)
    return kind_of(inner[0]) if inner and not isinstance(inner[0], str) else annotation


@pytest.mark.parametrize(("kind", "name", "field"), FIELDS, ids=map(".".join, FIELDS))
def test_no_number_is_nan_or_of_another_kind(kind, name, field):
    """By name and in Python alike; and every annotation can be had at run time."""
    part = registry.lookup(kind, name)
    annotation, written = registry.annotations(part)[field], inspect.unwrap(part)
    stated = inspect.signature(written).parameters[field].annotation
    assert annotation is not Any or stated == "Any", f"{stated} cannot be resolved"
    if kind_of(annotation) not in (int, float):
        return
    bad = [math.nan, math.inf, "high", True] if kind_of(annotation) is float else ["high", True, 2.5]
    for value in bad:
        given = {**NEEDED.get(name, {}), field: value}
        with pytest.raises(ConfigError, match=f"{field} must be a (whole )?number"):
            registry.build(kind, {"name": name, **given})
        if isinstance(value, float):  # what the checker of tests lets pass
            with pytest.raises(ConfigError, match=f"{field} must be a (whole )?number"):
                part(**given)
