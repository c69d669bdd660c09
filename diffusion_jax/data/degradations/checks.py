"""The errors that degradations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError, nearest


def check_choice(what: str, field: str, value: Any, known: Sequence[str]) -> None:
    """Raise a `ConfigError` unless `value` is one of the known names."""
    if value not in known:
        raise ConfigError(f"{what}: unknown {field} {value!r}{nearest(str(value), known)} (known: {', '.join(known)})")


def check_range(what: str, field: str, value: Sequence[float], low: float, high: float) -> None:
    """Raise a `ConfigError` unless value is (a, b) with low <= a <= b <= high."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ConfigError(f"{what}: {field} must be (from, to) with {low:g} <= from <= to <= {high:g}, got {tuple(value)}")


def check_float(what: str, image: np.ndarray) -> None:
    """Raise a `ConfigError` unless the image is floating [h, w, c]."""
    if image.ndim != 3 or not np.issubdtype(image.dtype, np.floating):
        raise ConfigError(f"{what} takes a floating image [h, w, c] in [0, 1], got {image.dtype} {image.shape}")


def to_unit(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [0, 1]."""
    return image.astype(np.float32) / 255


def to_bytes(image: np.ndarray) -> np.ndarray:
    """float in [0, 1] -> uint8, clipped and rounded."""
    return np.clip(np.floor(image * 255 + 0.5), 0, 255).astype(np.uint8)
