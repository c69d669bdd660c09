"""Coloured shapes drawn on the fly at any size: class, caption and mask, a pure function of the index."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.data.sources.base import SPLITS, Example
from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.registry import register
from diffusion_jax.spec import size_of
from diffusion_jax.values import Count, Natural

CLASSES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 160, 70),
    "blue": (38, 90, 210),
    "yellow": (240, 200, 40),
    "purple": (130, 70, 170),
    "orange": (235, 130, 40),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
_SIZES = {"small": (0.16, 0.22), "medium": (0.24, 0.31), "large": (0.33, 0.42)}
_OVERSAMPLING = 4


@register("source", "shapes")
@dataclasses.dataclass(frozen=True)
class Shapes:
    """Draws a shape of one colour on a ground of another; its mask is 255 where the shape is.

    Args:
      split: "train" or "test"; the two never share a drawing's random numbers.
      size: (height, width) of the images in pixels, or one number for squares.
      num_examples: in this split; drawing costs time, not memory.
      seed: of all drawings.

    >>> example = Shapes(size=32)[0]
    >>> example["image"].shape, example["mask"].shape, example["caption"].startswith("a ")
    ((32, 32, 3), (32, 32, 1), True)
    """

    split: str = "train"
    size: Count | tuple[Count, Count] = 64
    num_examples: Count = 10_000
    seed: Natural = 0

    name = "shapes"
    num_classes = len(CLASSES)
    class_names = CLASSES

    def __post_init__(self) -> None:
        check_choice("source 'shapes': split", self.split, SPLITS)
        size = size_of(self.size, "source 'shapes': size")
        if min(size) < 4:
            raise ConfigError(f"source 'shapes': size must be at least 4, got {self.size}")
        object.__setattr__(self, "_size", size)

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples} shapes")
        rng = np.random.default_rng([self.seed, self.split == "test", int(index)])
        label = int(rng.integers(len(CLASSES)))
        colour, ground = (list(COLOURS)[i] for i in rng.choice(len(COLOURS), 2, replace=False))
        size = list(_SIZES)[int(rng.integers(len(_SIZES)))]
        radius = rng.uniform(*_SIZES[size])
        # Radius and centre (x, y) are in units of the shorter side.
        farthest = [side / min(self._size) - 0.03 - radius for side in self._size[::-1]]
        centre = rng.uniform(radius + 0.03, farthest)
        mask = _draw(CLASSES[label], self._size, centre, radius, rng.uniform(0, 2 * math.pi))
        cover = mask.astype(np.float32)[..., None] / 255
        image = np.array(COLOURS[ground]) * (1 - cover) + np.array(COLOURS[colour]) * cover
        return {
            "image": np.round(image).astype(np.uint8),
            "label": label,
            "caption": f"a {size} {colour} {CLASSES[label]} on {ground}",
            "mask": mask[..., None],
        }


def _draw(shape: str, size: tuple[int, int], centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Coverage of each pixel, uint8 [H, W]: drawn larger and averaged down, so that edges are smooth."""
    height, width = size
    canvas = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING), 0)
    pen = ImageDraw.Draw(canvas)
    (x, y), r = (length * min(size) * _OVERSAMPLING for length in (centre, radius))
    turn = lambda points: [  # noqa: E731
        (x + r * (u * math.cos(angle) - v * math.sin(angle)), y + r * (u * math.sin(angle) + v * math.cos(angle)))
        for u, v in points
    ]
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            pen.ellipse((x - 0.55 * r, y - 0.55 * r, x + 0.55 * r, y + 0.55 * r), fill=0)
    elif shape == "square":
        pen.polygon(turn([(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)]), fill=255)
    elif shape == "triangle":
        pen.polygon(turn([(math.cos(a), math.sin(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]), fill=255)
    else:
        for bar in ([(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)], [(-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1)]):
            pen.polygon(turn(bar), fill=255)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))
