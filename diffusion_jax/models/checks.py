"""The errors of a U-Net that cannot be built, and of inputs that it cannot take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError

Dtype = Literal["float32", "bfloat16", "float16"]
"""Of a computation."""
Resizing = Literal["nearest", "bilinear", "bicubic"]


def check_null_class(network: str, num_classes: int, null_class: bool) -> None:
    """Raise a `ConfigError` for a null class without classes."""
    if null_class and not num_classes:
        raise ConfigError(f"{network}: null_class needs num_classes above 0")


def level_widths(channels: int, multipliers: Sequence[float]) -> list[int]:
    """Return the channels of each level."""
    if not multipliers:
        raise ConfigError("unet: multipliers is empty; it needs one entry for each level")
    widths = [round(channels * m) for m in multipliers]
    for width, multiplier in zip(widths, multipliers, strict=True):
        if width < 1 or abs(width - channels * multiplier) > 1e-6:
            raise ConfigError(f"unet: channels * multiplier = {channels} * {multiplier} is not a whole positive number")
    return widths


def check_sides(network: str, size: tuple[int, int], factor: int, because: str, mend: str = "") -> None:
    """Raise a `ConfigError` unless both sides (H, W) are divisible by a factor; the message names sizes that are."""
    if not any(side % factor for side in size):
        return
    shown = lambda size: str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"  # noqa: E731
    smaller, larger = (tuple(round(side / factor) * factor for side in size) for round in (math.floor, math.ceil))
    fitting = [shown(found) for found in (smaller, larger) if min(found)]
    raise ConfigError(
        f"{network}: image_size {shown(size)} is not divisible by {factor}, {because}; use {' or '.join(fitting)}{mend}"
    )


def check_levels(network: str, size: tuple[int, int], widths: Sequence[int]) -> None:
    """Raise a `ConfigError` unless both sides can be halved between the levels."""
    factor = 2 ** (len(widths) - 1)
    check_sides(network, size, factor, f"as {len(widths)} levels need", ", or fewer multipliers")


def check_widths(
    widths: Sequence[int], attends: Sequence[bool], groups: int, num_heads: int, head_channels: int | None
) -> None:
    """Raise a `ConfigError` where the levels' channels do not divide into groups or heads; the message names what does."""
    for width, attend in zip(widths, attends, strict=True):
        _check_divisor(width, groups, "groups", f"into {groups} groups")
        if attend and head_channels is not None:
            _check_divisor(width, head_channels, "head_channels", f"into heads of head_channels={head_channels}")
        elif attend:
            _check_divisor(width, num_heads, "num_heads", f"into num_heads={num_heads}")


def _check_divisor(width: int, divisor: int, field: str, how: str) -> None:
    if width % divisor:
        fitting = max(d for d in range(1, min(divisor, width) + 1) if not width % d)
        raise ConfigError(f"unet: {width} channels do not divide {how}; {field}={fitting} does")


def attention_levels(size: tuple[int, int], resolutions: Sequence[int], levels: int) -> list[bool]:
    """Return whether each level has attention: whether its smaller side is among the resolutions."""
    return [min(size) // 2**level in resolutions for level in range(levels)]


def check_conditioning(spec: Mapping[str, Any], cond: Mapping[str, Any], batch: int, within: str = "") -> None:
    """Raise a `ConfigError` unless `cond` has the entries of `spec`, of its ranks, channels and integer types.

    Heights, widths and lengths of sequences may differ from the specification's.
    """
    missing, extra = sorted(set(spec) - set(cond)), sorted(set(cond) - set(spec))
    if missing or extra:
        raise ConfigError(
            f"the network takes the conditioning {within}{sorted(spec) or 'none'}: "
            f"missing {missing or 'nothing'}, not known {extra or 'nothing'}"
        )
    for key, expected in spec.items():
        if not isinstance(expected, Mapping):
            _check_array(f"{within}{key!r}", expected, cond[key], batch)
        elif isinstance(cond[key], Mapping):
            check_conditioning(expected, cond[key], batch, f"{within}{key!r} ")
        else:
            raise ConfigError(f"the conditioning {within}{key!r} needs the entries {sorted(expected)}")


def _check_array(name: str, expected: jax.ShapeDtypeStruct, value: Any, batch: int) -> None:
    shape, rank = jnp.shape(value), len(expected.shape)
    # The last axis counts features, save for a boolean mask along a sequence.
    features = rank > 0 and not (rank == 1 and expected.dtype == jnp.bool_)
    if len(shape) != rank + 1 or shape[0] != batch or (features and shape[-1] != expected.shape[-1]):
        wanted = ", ".join(map(str, (batch, *expected.shape)))
        raise ConfigError(f"the conditioning {name} must have the shape [{wanted}], got {list(shape)}")
    if jnp.issubdtype(expected.dtype, jnp.integer) and not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise ConfigError(f"the conditioning {name} must be of an integer type, got {jnp.result_type(value)}")


def check_sizes(x: jax.Array, cond: Mapping[str, Any], factor: int) -> None:
    """Raise a `ConfigError` where the sizes of an image and what it is conditioned on do not fit one another."""
    size = x.shape[1:3]
    if size[0] % factor or size[1] % factor:
        raise ConfigError(f"the network halves images {factor.bit_length() - 1} times: {size} is not divisible by {factor}")
    for key in ("image", "mask"):
        if key in cond and cond[key].shape[1:3] != size:
            raise ConfigError(f"the conditioning {key!r} is of the size {cond[key].shape[1:3]}, but the image of {size}")
    text = cond.get("text", {})
    if "tokens" in text and text["mask"].shape != text["tokens"].shape[:2]:
        raise ConfigError(f"the text's mask is of the shape {text['mask'].shape}, its tokens {text['tokens'].shape[:2]}")
