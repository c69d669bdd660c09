"""JPEG compression and decompression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from diffusion_jax.data.degradations.checks import check_range
from diffusion_jax.errors import ConfigError


def check_quality(quality: float) -> None:
    """Raise a `ConfigError` unless 1 <= quality <= 100."""
    if not 1 <= quality <= 100 or quality != int(quality):
        raise ConfigError(f"jpeg: quality must be a whole number from 1 to 100, got {quality}")


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [h, w, 1 or 3] through JPEG (colour at half resolution, as is usual) and back; same shape.

    Raises:
      ConfigError: a quality outside 1 to 100, or an image of another type.
    """
    check_quality(quality)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ConfigError(f"jpeg: takes uint8 [h, w, 1 or 3], got {image.dtype} {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer)).reshape(image.shape)


def draw_quality(rng: np.random.Generator, quality: tuple[int, int] = (5, 30), decay: float = 10.0) -> int:
    """A quality in low..high with probability proportional to exp(-quality / decay), as Palette is trained.

    Raises:
      ConfigError: a range outside 1 to 100.

    Source: Saharia et al. 2022, appendix (arXiv 2111.05826).
    """
    check_range("jpeg", "quality", quality, 1, 100)
    values = np.arange(quality[0], quality[1] + 1)
    weights = np.exp(-(values - values[0]) / decay)
    return int(rng.choice(values, p=weights / weights.sum()))
