"""EDM's non-leaky augmentation: images are moved, and the network is told how, so that it draws none that are.

Source: Karras et al. 2022, appendix F.2 (arXiv 2206.00364), after Karras et al. 2020 (arXiv 2006.06676).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.warp import warp
from diffusion_jax.errors import ConfigError

LABELS = 9
"""How many numbers tell the network what was done; all are 0 for an image as it is."""

_STD = 0.2  # of the logarithms (base 2) of scales
_SHIFT = 0.125  # of the image's size


class Move(NamedTuple):
    """What is done to one image, a0 .. a7 of the paper; all zeros is nothing.

    Attributes:
      flip_x, flip_y: 0 or 1: mirrored left to right, and top to bottom.
      scale: enlarged by 2^(0.2 scale).
      rotation: in radians, counter-clockwise.
      stretch_angle, stretch: stretched by 2^(0.2 stretch) along a direction, shrunk by as much across it.
      shift_x, shift_y: moved right and down, in eighths of the size.
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
        """What the network is told, float32 [9]."""
        angles = [math.cos(self.rotation) - 1, math.sin(self.rotation)]
        stretch = [self.stretch * math.cos(self.stretch_angle), self.stretch * math.sin(self.stretch_angle)]
        return np.array([self.flip_x, self.flip_y, self.scale, *angles, *stretch, self.shift_x, self.shift_y], np.float32)

    def to_source(self, height: int, width: int) -> np.ndarray:
        """The geometry but the flips, as one affine map for `warp`, [3, 3]."""
        size = 2.0 ** (-_STD * self.scale)
        along = 2.0 ** (-_STD * self.stretch)
        stretch = _turn(-self.stretch_angle) @ np.diag([along, 1 / along, 1]) @ _turn(self.stretch_angle)
        shift = np.eye(3)
        shift[:2, 2] = -_SHIFT * self.shift_x * width, -_SHIFT * self.shift_y * height
        return np.diag([size, size, 1]) @ _turn(self.rotation) @ stretch @ shift

    def apply(self, image: np.ndarray) -> np.ndarray:
        """A floating image [H, W, C], moved."""
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
    """Draws moves.

    Args:
      probability: of each kind of move: vertical flip, scale, rotation, stretch, shift. The horizontal flip is a coin.
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"data: augment is a probability in (0, 1], or 0 for none, got {self.probability}")

    def draw(self, rng: np.random.Generator) -> Move:
        """The move of one image; every number is drawn, used or not, so that one kind does not change the others."""
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
        """uint8 [H, W, C] -> (float32 [H, W, C] in about [-1, 1], labels float32 [9])."""
        move = self.draw(rng)
        return np.ascontiguousarray(move.apply(image.astype(np.float32) / 127.5 - 1)), move.labels()
