"""Resizing, cropping and flipping of uint8 images; random ones draw from the generator they are given."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from diffusion_jax.errors import ConfigError, DataError, nearest

RESIZES = ("area", "bicubic", "bilinear", "adm")
CROPS = ("center", "random", "zoom", "none")
_ZOOM = 0.8  # the least share of a zoomed image's short side that a crop shows
_FILTERS = {
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "adm": Image.Resampling.BICUBIC,
}


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, c] as 1 (luma, ITU-R 601) or 3 channels; an alpha channel is composited on white."""
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


def _halve(image: np.ndarray, size: int) -> np.ndarray:
    """Halve by 2x2 boxes while the short side stays at least twice `size` (Dhariwal & Nichol 2021)."""
    while min(image.shape[:2]) >= 2 * size:
        image = resize(image, (image.shape[0] // 2, image.shape[1] // 2), "area")
    return image


@dataclasses.dataclass(frozen=True)
class Fit:
    """The deterministic part: pad, and shrink or enlarge to a short side of `size`.

    Args:
      size: of the short side, in pixels.
      channels: 1 or 3.
      method: "area", "bicubic", "bilinear", or "adm" (repeated halving, then bicubic; arXiv 2105.05233).
      pad: black pixels added on every side first (2 makes MNIST's 28 a 32).
    """

    size: int
    channels: int
    method: str = "area"
    pad: int = 0

    def __post_init__(self) -> None:
        if self.method not in RESIZES:
            hint = nearest(str(self.method), RESIZES)
            raise ConfigError(f"data: unknown resize {self.method!r}{hint} (known: {', '.join(RESIZES)})")
        if self.channels not in (1, 3):
            raise ConfigError(f"data: channels must be 1 or 3, got {self.channels}")
        if self.size < 1 or self.pad < 0:
            raise ConfigError(f"data: image_size must be positive and pad not negative, got {self.size} and {self.pad}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        image = to_channels(image, self.channels)
        if self.pad:
            image = np.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        if self.method == "adm":
            image = _halve(image, self.size)
        scale = self.size / min(image.shape[:2])
        height, width = (max(self.size, round(side * scale)) for side in image.shape[:2])
        return resize(image, (height, width), self.method)


@dataclasses.dataclass(frozen=True)
class Crop:
    """The possibly random part: a square crop of `size` and a horizontal flip with probability 1/2.

    Args:
      size: in pixels.
      crop: "center", "random", "none" (the image must be square), or "zoom": the short side is drawn from `size` to
        `size / 0.8`, and the place at random, as ADM's classifiers were trained (Dhariwal & Nichol 2021, arXiv 2105.05233).
      flip: whether to flip at random.
    """

    size: int
    crop: str = "center"
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ConfigError(f"data: unknown crop {self.crop!r}{nearest(str(self.crop), CROPS)} (known: {', '.join(CROPS)})")

    @property
    def source_size(self) -> int:
        """The short side that images should come with."""
        return int(self.size / _ZOOM) if self.crop == "zoom" else self.size

    def _zoomed(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        short = self.size if rng is None else int(rng.integers(self.size, self.source_size + 1))
        scale = short / min(image.shape[:2])
        height, width = (max(short, round(side * scale)) for side in image.shape[:2])
        # A mask travels as the last channel, and PIL takes four channels for transparency.
        parts = [resize(image[..., n : n + 1], (height, width), "bicubic") for n in range(image.shape[-1])]
        return np.concatenate(parts, axis=-1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Crop uint8 [h, w, c] to [size, size, c]; without a generator the crop is central and nothing is flipped."""
        if self.crop == "zoom":
            image = self._zoomed(image, rng)
        rows, columns = image.shape[0] - self.size, image.shape[1] - self.size
        if self.crop == "none" and (rows or columns):
            raise DataError(f"an image of {image.shape[1]}x{image.shape[0]} is not square; use crop='center' or 'random'")
        if self.crop in ("random", "zoom") and rng is not None:
            top, left = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
        else:
            top, left = rows // 2, columns // 2
        image = image[top : top + self.size, left : left + self.size]
        if self.flip and rng is not None and rng.random() < 0.5:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)
