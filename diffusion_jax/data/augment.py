"""EDM's non-leaky augmentation: images are moved, and labels tell the network how, so that it draws none that are.

Source: Karras et al. 2022, appendix F.2 (arXiv 2206.00364), after Karras et al. 2020 (arXiv 2006.06676).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.values import Fraction

LABELS = 9
"""How many numbers tell the network what was done; all are 0 for an image as it is."""

_STD = 0.2  # of the logarithms (base 2) of scales
_SHIFT = 0.125  # of the image's width and height

# The scaling filter of Daubechies' least asymmetric wavelet with six vanishing moments (sym6); it is orthonormal to its
# own even shifts, so that enlarging and reducing with it gives the image back.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
_CENTRE = float((SYM6 * np.arange(len(SYM6))).sum() / SYM6.sum())
_REACH = len(SYM6) // 2


class Move(NamedTuple):
    """A move of one image, a0 .. a7 of the paper; all zeros is none.

    Attributes:
      flip_x, flip_y: 0 or 1: mirrored left to right, and top to bottom.
      scale: enlarged by 2^(0.2 scale).
      rotation: in radians, counter-clockwise.
      stretch_angle, stretch: stretched by 2^(0.2 stretch) along a direction, shrunk by as much across it.
      shift_x, shift_y: moved right and down, in eighths of the width and of the height.
    """

    flip_x: float = 0.0
    flip_y: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    stretch_angle: float = 0.0
    stretch: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def labels(self) -> np.ndarray:
        """Return what the network is told, float32 [9]."""
        angles = [math.cos(self.rotation) - 1, math.sin(self.rotation)]
        stretch = [self.stretch * math.cos(self.stretch_angle), self.stretch * math.sin(self.stretch_angle)]
        return np.array([self.flip_x, self.flip_y, self.scale, *angles, *stretch, self.shift_x, self.shift_y], np.float32)

    def to_source(self, height: int, width: int) -> np.ndarray:
        """Return the geometry but the flips, as one affine map for `warp`, [3, 3]."""
        size = 2.0 ** (-_STD * self.scale)
        along = 2.0 ** (-_STD * self.stretch)
        stretch = _turn(-self.stretch_angle) @ np.diag([along, 1 / along, 1]) @ _turn(self.stretch_angle)
        shift = np.eye(3)
        shift[:2, 2] = -_SHIFT * self.shift_x * width, -_SHIFT * self.shift_y * height
        return np.diag([size, size, 1]) @ _turn(self.rotation) @ stretch @ shift

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Move a floating image [H, W, C]."""
        if self.flip_x:
            image = image[:, ::-1]
        if self.flip_y:
            image = image[::-1]
        if not any(self[2:]):
            return image
        return warp(image, self.to_source(*image.shape[:2]))


def _turn(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


@dataclasses.dataclass(frozen=True)
class NonLeaky:
    """Draws moves, and moves images.

    Args:
      probability: of each kind of move: vertical flip, scale, rotation, stretch, shift. The horizontal flip is a coin.

    Raises:
      ConfigError: a probability outside (0, 1].
    """

    probability: Fraction

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"data: augment is a probability in (0, 1], or 0 for none, got {self.probability}")

    def draw(self, rng: np.random.Generator) -> Move:
        """Draw the move of one image; every number is drawn, used or not, so that one kind does not change the others."""
        used = rng.random(5) < self.probability
        flips, angles, normal = rng.integers(2, size=2), rng.uniform(-math.pi, math.pi, 2), rng.standard_normal(4)
        turned = rng.random() < 0.5  # half of the stretches are along an axis
        return Move(
            flip_x=float(flips[0]),
            flip_y=float(used[0] * flips[1]),
            scale=float(used[1] * normal[0]),
            rotation=float(used[2] * angles[0]),
            stretch_angle=float(used[3] * turned * angles[1]),
            stretch=float(used[3] * normal[1]),
            shift_x=float(used[4] * normal[2]),
            shift_y=float(used[4] * normal[3]),
        )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Move an image uint8 [H, W, C]; return it as float32 [H, W, C] in about [-1, 1], and its labels float32 [9]."""
        move = self.draw(rng)
        return np.ascontiguousarray(move.apply(image.astype(np.float32) / 127.5 - 1)), move.labels()


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
    """Warp an image by an affine map; it neither aliases nor blurs: reflected borders, two-fold supersampling, wavelet filters.

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
