"""Resizing, cropping and flipping of uint8 images; random ones draw from the generator they are given."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.spec import size_of

MOST_PIXELS = 178_956_970
"""Of an image; what claims more, or would be enlarged to more, is refused before memory is asked for. It is PIL's own limit."""

RESIZES = ("area", "bicubic", "bilinear", "adm")
CROPS = ("center", "random", "zoom", "none")
_ZOOM = 0.8  # the least share of a zoomed image's sides that a crop shows
_FILTERS = {
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "adm": Image.Resampling.BICUBIC,
}


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Convert uint8 [h, w, c] to 1 (luma, ITU-R 601) or 3 channels; an alpha channel is composited on white.

    Raises:
      DataError: an image that cannot be converted.
    """
    if image.shape[-1] in (2, 4):
        alpha = image[..., -1:].astype(np.float32) / 255
        image = np.round(image[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if image.shape[-1] == channels:
        return image
    if image.shape[-1] == 1:
        return np.repeat(image, channels, axis=-1)
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    raise DataError(f"cannot make {channels} channels of an image with {image.shape[-1]}; use 1 or 3")


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def resize(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """Resize uint8 [h, w, c] to (height, width); every method is anti-aliased when it shrinks.

    Args:
      method: "area" (box), "bicubic" or "bilinear".
    """
    if image.shape[:2] == size:
        return image
    resized = np.asarray(_pil(image).resize(size[::-1], _FILTERS[method]))
    return resized.reshape(*size, image.shape[-1])


def cover(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of an image scaled so that it just covers a size: both sides reach it, one exactly.

    Args:
      shape: (height, width) of the image.
      size: (height, width) to be covered.
    """
    scale = max(wanted / side for side, wanted in zip(shape, size, strict=True))
    height, width = (max(wanted, round(side * scale)) for side, wanted in zip(shape, size, strict=True))
    return height, width


def _halve(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Halve by 2x2 boxes while both sides stay at least twice those of `size` (Dhariwal & Nichol 2021)."""
    while image.shape[0] >= 2 * size[0] and image.shape[1] >= 2 * size[1]:
        image = resize(image, (image.shape[0] // 2, image.shape[1] // 2), "area")
    return image


@dataclasses.dataclass(frozen=True)
class Fit:
    """The deterministic part: pads an image, and shrinks or enlarges it until it covers a size.

    Args:
      size: (height, width) in pixels, or one number for a square.
      channels: 1 or 3.
      method: "area", "bicubic", "bilinear", or "adm" (repeated halving, then bicubic; arXiv 2105.05233).
      pad: black pixels added on every side first (2 makes MNIST's 28 a 32).

    Raises:
      ConfigError: an unknown method, other channels, sizes below 1 or a negative pad.
    """

    size: int | tuple[int, int]
    channels: int
    method: str = "area"
    pad: int = 0

    def __post_init__(self) -> None:
        check_choice("data: resize", self.method, RESIZES)
        if self.channels not in (1, 3):
            raise ConfigError(f"data: channels must be 1 or 3, got {self.channels}")
        if self.pad < 0:
            raise ConfigError(f"data: pad must not be negative, got {self.pad}")
        object.__setattr__(self, "size", size_of(self.size))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Fit uint8 [h, w, c]: uint8 [h', w', channels] with h' >= height and w' >= width, one of them exactly.

        Raises:
          DataError: an image so long and narrow that the result would have more than `MOST_PIXELS`.
        """
        image = to_channels(image, self.channels)
        if self.pad:
            image = np.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        if self.method == "adm":
            image = _halve(image, self.size)
        height, width = cover(image.shape[:2], self.size)
        if height * width > MOST_PIXELS:
            raise DataError(
                f"an image of {image.shape[1]}x{image.shape[0]} would be {width}x{height} pixels to cover "
                f"{self.size[1]}x{self.size[0]}, more than {MOST_PIXELS:,}: crop it, or leave it out"
            )
        return resize(image, (height, width), self.method)


@dataclasses.dataclass(frozen=True)
class Crop:
    """The possibly random part: a crop of a size, and a horizontal flip with probability 1/2.

    Args:
      size: (height, width) in pixels, or one number for a square.
      crop: "center", "random", "none" (the image must have this size), or "zoom": the image is scaled to cover 1 to 1 / 0.8
        times the size first, and the place is random, as ADM's classifiers were trained (Dhariwal & Nichol 2021, arXiv
        2105.05233).
      flip: whether to flip at random.

    Raises:
      ConfigError: an unknown crop, or a size below 1.
    """

    size: int | tuple[int, int]
    crop: str = "center"
    flip: bool = False

    def __post_init__(self) -> None:
        check_choice("data: crop", self.crop, CROPS)
        object.__setattr__(self, "size", size_of(self.size))

    @property
    def source_size(self) -> tuple[int, int]:
        """The (height, width) that images should cover when they come."""
        return self._enlarged(int(min(self.size) / _ZOOM)) if self.crop == "zoom" else self.size

    def _enlarged(self, short: int) -> tuple[int, int]:
        """The size, its aspect kept, with a shorter side of `short`."""
        height, width = (round(side * short / min(self.size)) for side in self.size)
        return height, width

    def _zoomed(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        short, longest = min(self.size), min(self.source_size)
        short = short if rng is None else int(rng.integers(short, longest + 1))
        size = cover(image.shape[:2], self._enlarged(short))
        # A mask travels as the last channel, and PIL takes four channels for transparency.
        parts = [resize(image[..., n : n + 1], size, "bicubic") for n in range(image.shape[-1])]
        return np.concatenate(parts, axis=-1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Crop uint8 [h, w, c] to [height, width, c]; without a generator the crop is central and nothing is flipped.

        Raises:
          DataError: an image of another size than that of a crop "none".
        """
        if self.crop == "zoom":
            image = self._zoomed(image, rng)
        height, width = self.size
        rows, columns = image.shape[0] - height, image.shape[1] - width
        if self.crop == "none" and (rows or columns):
            raise DataError(
                f"an image of {image.shape[1]}x{image.shape[0]} is not one of {width}x{height}; use crop='center' or 'random'"
            )
        if self.crop in ("random", "zoom") and rng is not None:
            top, left = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
        else:
            top, left = rows // 2, columns // 2
        image = image[top : top + height, left : left + width]
        if self.flip and rng is not None and rng.random() < 0.5:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)
