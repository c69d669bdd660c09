"""An affine warp of an image that neither aliases nor blurs: reflected borders, two-fold supersampling, wavelet filters."""

from __future__ import annotations

import numpy as np

# The scaling filter of Daubechies' least asymmetric wavelet with six vanishing moments (sym6); it is orthonormal to its
# own even shifts, so that enlarging and reducing with it gives the image back.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
_CENTRE = float((SYM6 * np.arange(len(SYM6))).sum() / SYM6.sum())
_REACH = len(SYM6) // 2


def _enlarge(x: np.ndarray) -> np.ndarray:
    """[n, ...] -> [2n + 10, ...]: entry m is spread over 2m .. 2m + 11, about 2m + _CENTRE."""
    out = np.zeros((2 * len(x) + len(SYM6) - 2, *x.shape[1:]), x.dtype)
    for k, tap in enumerate(SYM6):
        out[k : k + 2 * len(x) - 1 : 2] += np.sqrt(2) * tap * x
    return out


def _reduce(x: np.ndarray) -> np.ndarray:
    """The transpose: [2n + 10, ...] -> [n, ...]."""
    count = (len(x) - len(SYM6) + 2) // 2
    parts = [tap / np.sqrt(2) * x[k : k + 2 * count - 1 : 2] for k, tap in enumerate(SYM6)]
    return np.sum(parts, axis=0)


def _both_axes(function, x: np.ndarray) -> np.ndarray:
    return function(function(x).swapaxes(0, 1)).swapaxes(0, 1)


def _bilinear(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """x [h, w, c] at fractional places inside of it; [..., c]."""
    top = np.clip(np.floor(rows), 0, x.shape[0] - 2).astype(int)
    left = np.clip(np.floor(columns), 0, x.shape[1] - 2).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper = (1 - right) * x[top, left] + right * x[top, left + 1]
    lower = (1 - right) * x[top + 1, left] + right * x[top + 1, left + 1]
    return (1 - down) * upper + down * lower


def warp(image: np.ndarray, to_source: np.ndarray) -> np.ndarray:
    """Move the pixels of an image.

    Args:
      image: floating [H, W, C].
      to_source: [3, 3], from a place (x, y, 1) in the result to the one in the image that it shows; in pixels from the
        centre, x to the right and y down.

    Returns:
      Floating [H, W, C], of the image's dtype; values may overshoot the image's range a little, as filters with negative
      taps do. Beyond its borders the image is reflected. The identity returns the image.

    Source: Karras et al. 2022, appendix F.2 (arXiv 2206.00364); Karras et al. 2020, appendix B (arXiv 2006.06676).
    """
    height, width, _ = image.shape
    # Places of the fine pixels of the result, in coarse pixels from the corner.
    rows, columns = ((np.arange(2 * n + len(SYM6) - 2) - _CENTRE) / 2 for n in (height, width))
    y, x = np.meshgrid(rows - (height - 1) / 2, columns - (width - 1) / 2, indexing="ij")
    source_x = to_source[0, 0] * x + to_source[0, 1] * y + to_source[0, 2] + (width - 1) / 2
    source_y = to_source[1, 0] * x + to_source[1, 1] * y + to_source[1, 2] + (height - 1) / 2
    beyond = max(-source_x.min(), -source_y.min(), source_x.max() - width + 1, source_y.max() - height + 1, 0.0)
    margin = int(np.ceil(beyond)) + _REACH
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect" if min(height, width) > 1 else "edge")
    fine = _both_axes(_enlarge, padded)
    warped = _bilinear(fine, 2 * (source_y + margin) + _CENTRE, 2 * (source_x + margin) + _CENTRE)
    return _both_axes(_reduce, warped).astype(image.dtype)
