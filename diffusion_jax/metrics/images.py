"""Distances of images to the very images that they should be: PSNR, SSIM, and the consistency of super-resolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_jax.errors import DataError
from diffusion_jax.lazy import lazy
from diffusion_jax.systems.conditioners.low_res import downsample

ndimage = lazy("scipy.ndimage")

_BATCH = 64
_SIGMA, _RADIUS = 1.5, 5  # of the window: 11 pixels a side
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(images: Any, references: Any) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / mean squared error); infinite for equal images.

    Args:
      images, references: uint8 [N, H, W, C].

    Returns:
      float64 [N].

    Raises:
      DataError: not uint8, or of different shapes.
    """
    images, references = _pairs(images, references)
    errors = np.array([_mean_square(x, y) for x, y in zip(images, references, strict=True)])
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / errors)


def ssim(images: Any, references: Any) -> np.ndarray:
    """Structural similarity, at most 1: a Gaussian window of 11 pixels, sigma 1.5; the mean over pixels and channels.

    Windows that reach over the border are left out. Channels are compared one by one, without weights.

    Args:
      images, references: uint8 [N, H, W, C], at least 11 pixels a side.

    Returns:
      float64 [N].

    Raises:
      DataError: not uint8, of different shapes, or smaller than the window.

    Source: Wang et al. 2004 (IEEE Transactions on Image Processing 13).
    """
    images, references = _pairs(images, references)
    side = 2 * _RADIUS + 1
    if min(images.shape[1:3]) < side:
        raise DataError(f"SSIM needs images of at least {side} x {side} pixels, got {images.shape[1]} x {images.shape[2]}")
    return np.array([_similarity(x, y) for x, y in zip(images, references, strict=True)])


def consistency(images: Any, low_res: Any, *, method: str = "area") -> np.ndarray:
    """The mean squared error between downsampled images and what they were made from, with pixels in [0, 1].

    Args:
      images: uint8 [N, H, W, C].
      low_res: uint8 [N, h, w, C].
      method: "area", "bilinear" or "bicubic", anti-aliased: as the low-resolution images were made.

    Returns:
      float64 [N].

    Raises:
      DataError: not uint8, or of different numbers or channels.

    Source: Saharia et al. 2021, section 4 (arXiv 2104.07636).
    """
    images, low_res = uint8_images(images), uint8_images(low_res, "low-resolution images")
    if (len(images), images.shape[3]) != (len(low_res), low_res.shape[3]):
        raise DataError(f"consistency: images {images.shape} do not belong to low-resolution images {low_res.shape}")
    errors = []
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        small = np.asarray(downsample(images[part].astype(np.float32), low_res.shape[1:3], method), np.float64)
        errors.append((((small - low_res[part]) / 255) ** 2).mean((1, 2, 3)))
    return np.concatenate(errors)


def _pairs(images: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    images, references = uint8_images(images), uint8_images(references, "references")
    if images.shape != references.shape:
        raise DataError(f"images and references have different shapes: {images.shape} and {references.shape}")
    return images, references


def _mean_square(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x.astype(np.float64) - y) ** 2).mean())


def _blurred(x: np.ndarray) -> np.ndarray:
    """[H, W, C] under the Gaussian window, where the window lies within."""
    for axis in (0, 1):
        x = ndimage.gaussian_filter1d(x, _SIGMA, axis=axis, radius=_RADIUS)
    return x[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _similarity(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return float((luminance * structure).mean())


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
