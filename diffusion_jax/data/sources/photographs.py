"""Crops of the colour photographs that come inside Python packages: real images of any size, without a download."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data.sources.base import Example, check_split
from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import register

_SKLEARN = ("china.jpg", "flower.jpg")
# Those inside scikit-image's wheel that show the world in colour: no microscopy, no grey ones, none that it downloads.
_SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg")
_HELD_OUT = 0.25
_LARGEST = 4.0


@register("source", "photographs")
@dataclasses.dataclass(frozen=True)
class Photographs:
    """Square crops at random places and scales: two photographs of scikit-learn, and six of scikit-image if it is installed.

    Held out is the last quarter of each photograph along its longer side; no training crop touches it. A crop is a pure
    function of (seed, split, index), and of which packages are installed.

    Args:
      split: "train" or "test".
      size: of the square images, in pixels. A crop is `size` to 4 * `size` pixels wide, its logarithm uniform, and is
        reduced to `size` by area; nothing is ever enlarged.
      num_examples: in this split; cropping costs time, not memory.
      seed: of all crops.

    Raises:
      ConfigError: sizes below 1, or larger than the held-out part of every photograph.

    >>> example = Photographs(size=32)[0]
    >>> example["image"].shape, example["image"].dtype
    ((32, 32, 3), dtype('uint8'))
    """

    split: str = "train"
    size: int = 64
    num_examples: int = 10_000
    seed: int = 0

    name = "photographs"
    num_classes = 0
    class_names = ()

    def __post_init__(self) -> None:
        check_split("photographs", self.split)
        if self.size < 1 or self.num_examples < 1:
            raise ConfigError(
                f"source 'photographs': size and num_examples must be at least 1, got {self.size} and {self.num_examples}"
            )
        files = paths()
        fitting = [path for path in files if min(_region(path, "test").shape[:2]) >= self.size]
        if not fitting:
            largest = max(min(_region(path, "test").shape[:2]) for path in files)
            raise ConfigError(
                f"source 'photographs': no photograph has a held-out part of {self.size}x{self.size} pixels; "
                f"use a size of at most {largest}"
            )
        object.__setattr__(self, "_paths", tuple(fitting))

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples} crops")
        rng = np.random.default_rng([self.seed, self.split == "test", int(index)])
        region = _region(self._paths[int(rng.integers(len(self._paths)))], self.split)
        height, width = region.shape[:2]
        side = int(self.size * min(_LARGEST, min(height, width) / self.size) ** rng.random())
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        crop = region[top : top + side, left : left + side]
        if side > self.size:
            crop = np.asarray(Image.fromarray(crop).resize((self.size, self.size), Image.Resampling.BOX))
        return {"image": np.ascontiguousarray(crop)}


@functools.cache
def paths() -> tuple[Path, ...]:
    """The files of the photographs that are installed."""
    found = [_folder("sklearn") / "datasets" / "images" / name for name in _SKLEARN]
    if importlib.util.find_spec("skimage") is not None:
        found += [_folder("skimage") / "data" / name for name in _SKIMAGE]
    return tuple(path for path in found if path.is_file())


def _folder(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent


@functools.cache
def _region(path: Path, split: str) -> np.ndarray:
    """The part of a photograph that belongs to a split, uint8 [h, w, 3]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    axis = 0 if pixels.shape[0] > pixels.shape[1] else 1
    border = round(pixels.shape[axis] * (1 - _HELD_OUT))
    return np.split(pixels, [border], axis)[split == "test"]
