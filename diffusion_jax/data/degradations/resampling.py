"""Resizing in floating point, and what a low-resolution image still knows of the high-resolution one."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffusion_jax.data.degradations.checks import check_choice, check_float
from diffusion_jax.errors import DataError

METHODS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resize(image: np.ndarray, size: tuple[int, int], method: str = "bicubic") -> np.ndarray:
    """Resize to (height, width); every method is anti-aliased where it shrinks: its support is widened by the factor.

    Args:
      image: floating [h, w, c]. Not rounded and not clipped: bicubic overshoots.
      method: "area", "bilinear" or "bicubic" (Keys' cubic, a = -1/2).

    Returns:
      float32 [*size, c].

    Raises:
      ConfigError: an unknown method, or an image of integers.
    """
    check_choice("resize", "method", method, tuple(METHODS))
    check_float("resize", image)
    channels = np.moveaxis(image.astype(np.float32), -1, 0)
    return np.stack([np.asarray(Image.fromarray(c).resize(size[::-1], METHODS[method])) for c in channels], -1)


def check_reducible(size: tuple[int, int], low_res: int | tuple[int, int]) -> None:
    """Raise a `DataError` for an image with a side already smaller than the low-resolution one that is to be made of it.

    Args:
      size, low_res: (height, width); one number for a square.
    """
    height, width = (low_res, low_res) if isinstance(low_res, int) else low_res
    if size[0] < height or size[1] < width:
        raise DataError(
            f"an image of {size[1]}x{size[0]} is already smaller than the low-resolution size {width}x{height}: "
            "leave smaller images out, or enlarge them first"
        )


def down_up(image: np.ndarray, size: tuple[int, int], method: str = "bicubic") -> np.ndarray:
    """The image reduced to (height, width) and enlarged back: the baseline of super-resolution; float32 [h, w, c]."""
    check_reducible(image.shape[:2], size)
    return resize(resize(image, size, method), image.shape[:2], method)
