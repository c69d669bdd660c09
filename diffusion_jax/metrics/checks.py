"""What the metrics ask of their inputs, checked before they work."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_jax.errors import DataError


def feature_rows(features: Any, name: str = "features") -> np.ndarray:
    """Features [N, D], floating: float64 and narrower types stay as they are, since 50,000 rows fill the memory.

    Raises:
      DataError: another shape, no rows, NaN or infinite values.
    """
    rows = np.asarray(features)
    if not np.issubdtype(rows.dtype, np.floating):
        rows = rows.astype(np.float64)
    if rows.ndim != 2 or not rows.size:
        raise DataError(f"{name} must be [N, D] with at least one row, got the shape {rows.shape}")
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise DataError(f"{int((~finite).sum())} of {len(rows)} rows of {name} are NaN or infinite")
    return rows


def same_width(first: np.ndarray, second: np.ndarray) -> None:
    """Raise a `DataError` unless two sets of features come from one network."""
    if first.shape[1] != second.shape[1]:
        raise DataError(f"features of different widths: {first.shape[1]} and {second.shape[1]}; use one network for both")


def uint8_images(images: Any, name: str = "images") -> np.ndarray:
    """Images uint8 [N, H, W, C].

    Raises:
      DataError: another type or shape, or no image.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise DataError(f"{name} must be uint8 in 0..255, got {images.dtype}: for [-1, 1], round(127.5 * (x + 1))")
    if images.ndim != 4 or not images.size:
        raise DataError(f"{name} must be [N, H, W, C] with at least one image, got the shape {images.shape}")
    return images
