"""Operators that degradations are made of: resizing, blur, noise, JPEG. Every draw comes from the generator that is given."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.lazy import lazy
from diffusion_jax.spec import size_of

ndimage = lazy("scipy.ndimage")

METHODS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
NOISES = ("colour", "grey", "correlated")


def check_range(what: str, field: str, value: Sequence[float], low: float, high: float) -> None:
    """Raise a `ConfigError` unless value is (a, b) with low <= a <= b <= high."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ConfigError(f"{what}: {field} must be (from, to) with {low:g} <= from <= to <= {high:g}, got {tuple(value)}")


def check_float(what: str, image: np.ndarray) -> None:
    """Raise a `ConfigError` unless the image is floating [h, w, c]."""
    if image.ndim != 3 or not np.issubdtype(image.dtype, np.floating):
        raise ConfigError(f"{what} takes a floating image [h, w, c] in [0, 1], got {image.dtype} {image.shape}")


def to_unit(image: np.ndarray) -> np.ndarray:
    """Convert uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / 255


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1] to uint8, clipped and rounded."""
    return np.clip(np.floor(image * 255 + 0.5), 0, 255).astype(np.uint8)


def resize(image: np.ndarray, size: tuple[int, int], method: str = "bicubic") -> np.ndarray:
    """Resize to (height, width); every method is anti-aliased where it shrinks: its support is widened by the factor.

    Args:
      image: floating [h, w, c]. Not rounded and not clipped: bicubic overshoots.
      method: "area", "bilinear" or "bicubic" (Keys' cubic, a = -1/2).

    Returns:
      float32 [*size, c].

    Raises:
      ConfigError: an unknown method, or an image of integers.
    """
    check_choice("resize: method", method, METHODS)
    check_float("resize", image)
    channels = np.moveaxis(image.astype(np.float32), -1, 0)
    return np.stack([np.asarray(Image.fromarray(c).resize(size[::-1], METHODS[method])) for c in channels], -1)


def check_reducible(size: tuple[int, int], low_res: int | tuple[int, int]) -> None:
    """Raise a `DataError` for an image with a side already smaller than the low-resolution one that is to be made of it.

    Args:
      size: (height, width) of the image.
      low_res: (height, width), or one number for a square.
    """
    height, width = size_of(low_res, "the low-resolution size")
    if size[0] < height or size[1] < width:
        raise DataError(
            f"an image of {size[1]}x{size[0]} is already smaller than the low-resolution size {width}x{height}: "
            "leave smaller images out, or enlarge them first"
        )


def down_up(image: np.ndarray, size: tuple[int, int], method: str = "bicubic") -> np.ndarray:
    """Reduce an image to (height, width) and enlarge it back: the baseline of super-resolution; float32 [h, w, c]."""
    check_reducible(image.shape[:2], size)
    return resize(resize(image, size, method), image.shape[:2], method)


def gaussian_kernel(
    size: int,
    sigma: float | tuple[float, float],
    angle: float = 0.0,
    shift: float = 0.0,
) -> np.ndarray:
    """Return a Gaussian on a square grid of pixels, summing to 1; float64 [size, size].

    Args:
      size: odd.
      sigma: the standard deviation in pixels, or those along the two axes of an anisotropic one.
      angle: of the first axis against the columns' axis, in radians, towards growing rows.
      shift: of the centre, in pixels along rows and columns, as decimation by s needs it ((s - 1) / 2).

    Raises:
      ConfigError: an even size, or standard deviations that are not positive.
    """
    sigmas = (sigma, sigma) if isinstance(sigma, int | float) else tuple(sigma)
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"blur: the size of a kernel must be odd, got {size}")
    if min(sigmas) <= 0:
        raise ConfigError(f"blur: standard deviations must be positive, got {sigma}")
    offsets = np.arange(size) - size // 2 - shift
    rows, columns = np.meshgrid(offsets, offsets, indexing="ij")
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    kernel = np.exp(-0.5 * ((along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2))
    return kernel / kernel.sum()


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel of a floating image [h, w, c] with a kernel; edges are mirrored. float32 [h, w, c]."""
    check_float("blur", image)
    channels = [ndimage.correlate(channel, kernel, mode="mirror") for channel in np.moveaxis(image, -1, 0)]
    return np.stack(channels, -1).astype(np.float32)


def gaussian_noise(image: np.ndarray, sigma: float, rng: np.random.Generator, kind: str = "colour") -> np.ndarray:
    """Add noise to a floating image [h, w, c], and clip it to [0, 1]; float32.

    Args:
      sigma: the standard deviation, in units of the range [0, 1]; the largest one of "correlated" noise.
      kind: "colour" is independent in each channel, "grey" the same in all, "correlated" has a random covariance:
        standard deviations up to sigma along random axes of the colour space.

    Source: the degradation model of Zhang et al. 2021, section 3 (arXiv 2103.14006).
    """
    check_choice("noise: kind", kind, NOISES)
    check_float("noise", image)
    height, width, channels = image.shape
    if kind == "grey":
        noise = rng.standard_normal((height, width, 1))
    else:
        noise = rng.standard_normal((height, width, channels))
    if kind == "correlated":
        axes = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
        noise = noise @ (np.sqrt(rng.random(channels))[:, None] * axes.T)
    return np.clip(image + sigma * noise, 0, 1).astype(np.float32)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress uint8 [h, w, 1 or 3] by JPEG (colour at half resolution, as is usual), and decompress it; same shape.

    Raises:
      ConfigError: a quality outside 1 to 100, or an image of another type.
    """
    if not 1 <= quality <= 100 or quality != int(quality):
        raise ConfigError(f"jpeg: quality must be a whole number from 1 to 100, got {quality}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ConfigError(f"jpeg: takes uint8 [h, w, 1 or 3], got {image.dtype} {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer)).reshape(image.shape)


def draw_quality(rng: np.random.Generator, quality: tuple[int, int] = (5, 30), decay: float = 10.0) -> int:
    """Draw a quality in low..high with probability proportional to exp(-quality / decay), as Palette is trained.

    Raises:
      ConfigError: a range outside 1 to 100.

    Source: Saharia et al. 2022, appendix (arXiv 2111.05826).
    """
    check_range("jpeg", "quality", quality, 1, 100)
    values = np.arange(quality[0], quality[1] + 1)
    weights = np.exp(-(values - values[0]) / decay)
    return int(rng.choice(values, p=weights / weights.sum()))
