"""Small shifts and rotations of image batches, in numpy: what a classifier of few images is trained on."""

from __future__ import annotations

import numpy as np


def shift_and_rotate(
    images: np.ndarray, rng: np.random.Generator, *, pixels: float = 2.0, degrees: float = 12.0, zoom: float = 0.1
) -> np.ndarray:
    """Each image moved, turned and zoomed by amounts of its own, uniform within the bounds; bilinear, edges repeated.

    Args:
      images: [B, H, W, C], floating.
      pixels: the largest shift along each axis.
      degrees: the largest rotation about the centre.
      zoom: the largest relative change of size.

    Returns:
      float32 [B, H, W, C].
    """
    batch, height, width, _ = images.shape
    angle = np.deg2rad(rng.uniform(-degrees, degrees, batch))
    scale = 1 / rng.uniform(1 - zoom, 1 + zoom, batch)
    shift = rng.uniform(-pixels, pixels, (2, batch))
    cos, sin = (scale * np.cos(angle))[:, None, None], (scale * np.sin(angle))[:, None, None]
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    rows = cos * y - sin * x + (height - 1) / 2 + shift[0][:, None, None]
    columns = sin * y + cos * x + (width - 1) / 2 + shift[1][:, None, None]
    return sample_bilinear(images, rows, columns)


def sample_bilinear(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The values of [B, H, W, C] images at fractional positions [B, h, w]; float32 [B, h, w, C]."""
    _, height, width, _ = images.shape
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    batch = np.arange(len(images))[:, None, None]
    upper = (1 - across) * images[batch, top, left] + across * images[batch, top, right]
    lower = (1 - across) * images[batch, bottom, left] + across * images[batch, bottom, right]
    return ((1 - down) * upper + down * lower).astype(np.float32)
