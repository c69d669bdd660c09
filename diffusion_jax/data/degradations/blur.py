"""Gaussian blur, round or slanted."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from diffusion_jax.data.degradations.checks import check_float
from diffusion_jax.errors import ConfigError


def gaussian_kernel(
    size: int,
    sigma: float | tuple[float, float],
    angle: float = 0.0,
    shift: float = 0.0,
) -> np.ndarray:
    """A Gaussian on a square grid of pixels, summing to 1; float64 [size, size].

    Args:
      size: odd.
      sigma: the standard deviation in pixels, or those along the two axes of an anisotropic one.
      angle: of the first axis against the columns' axis, in radians, towards growing rows.
      shift: of the centre, in pixels along rows and columns, as decimation by s needs it ((s - 1) / 2).

    Raises:
      ConfigError: an even size, or standard deviations that are not positive.
    """
    sigmas = (sigma, sigma) if isinstance(sigma, int | float) else tuple(sigma)
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"blur: the size of a kernel must be odd, got {size}")
    if min(sigmas) <= 0:
        raise ConfigError(f"blur: standard deviations must be positive, got {sigma}")
    offsets = np.arange(size) - size // 2 - shift
    rows, columns = np.meshgrid(offsets, offsets, indexing="ij")
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    kernel = np.exp(-0.5 * ((along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2))
    return kernel / kernel.sum()


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel of a floating image [h, w, c] with a kernel; edges are mirrored. float32 [h, w, c]."""
    check_float("blur", image)
    channels = [ndimage.correlate(channel, kernel, mode="mirror") for channel in np.moveaxis(image, -1, 0)]
    return np.stack(channels, -1).astype(np.float32)
