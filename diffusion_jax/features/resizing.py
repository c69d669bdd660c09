"""From uint8 images to what a feature network takes, exactly as each reference tool does it.

The same network on images resized another way gives another distance: a number is comparable with those of one tool only.

| name | resize | values |
|---|---|---|
| tf1 | bilinear as in TensorFlow 1: no half-pixel centres, no antialiasing | (x - 128) / 128 |
| pytorch-fid | bilinear with half-pixel centres, no antialiasing | 2 x / 255 - 1 |
| clean-fid | Pillow's bicubic with antialiasing, each channel in float, clipped | (x - 128) / 128 |
| torch-fidelity | as tf1 | ImageNet's mean and deviation |
| torchvision | Pillow's bilinear to 256 / 224 of the size on the short side, centre crop | ImageNet's mean and deviation |
| dinov2 | Pillow's bicubic with antialiasing, rounded to uint8 | ImageNet's mean and deviation |
| dinov2-float | the same in float, as EDM2's reference statistics have it | ImageNet's mean and deviation |
| clip | Pillow's bicubic of the short side, centre crop | CLIP's mean and deviation |

What can run as matrix products does so on the device; Pillow's resizes run on the host, in threads.

Sources: Heusel et al. 2017 (arXiv 1706.08500) for tf1; Parmar et al. 2021 (arXiv 2104.11222) for clean-fid and the
differences that it makes; Stein et al. 2023 (arXiv 2306.04675) for dinov2; Karras et al. 2023 (arXiv 2312.02696) for
dinov2-float; Radford et al. 2021 (arXiv 2103.00020) for clip.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.errors import check_choice

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """One of the named variants, for one size.

    Attributes:
      name: of the variant.
      size: H = W of its result.
      host: one uint8 [h, w, 3] image to uint8 or float32 [size, size, 3] in 0..255, in numpy; None for nothing to do.
      device: a batch of those (of the images themselves without `host`) to float32 [B, size, size, 3]; may be jitted.
    """

    name: str
    size: int
    host: Callable[[np.ndarray], np.ndarray] | None
    device: Callable[[jax.Array], jax.Array]

    def on_host(self, images: np.ndarray) -> np.ndarray:
        """The host's part, for images uint8 [B, h, w, 3]."""
        if self.host is None:
            return images
        return np.stack(list(_threads().map(self.host, images)))

    def __call__(self, images: np.ndarray) -> jax.Array:
        """Images uint8 [B, h, w, 3] to float32 [B, size, size, 3]."""
        return self.device(jnp.asarray(self.on_host(images)))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="resize")


def bilinear_matrix(old: int, new: int, *, half_pixel: bool) -> np.ndarray:
    """Linear interpolation without antialiasing: float32 [new, old], whose rows sum to 1.

    Args:
      half_pixel: whether sample i stands for the middle of its pixel, as in PyTorch, or for its beginning, as in
        TensorFlow 1. Places are computed in float32, as both do.
    """
    scale, places = np.float32(old / new), np.arange(new, dtype=np.float32)
    places = np.maximum((places + np.float32(0.5)) * scale - np.float32(0.5), 0) if half_pixel else places * scale
    lower = np.minimum(np.floor(places).astype(int), old - 1)
    share = places - lower.astype(np.float32)
    matrix, rows = np.zeros((new, old), np.float32), np.arange(new)
    np.add.at(matrix, (rows, lower), 1 - share)
    np.add.at(matrix, (rows, np.minimum(lower + 1, old - 1)), share)
    return matrix


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Cubic interpolation (a = -0.5), widened to the new pixel where it shrinks: float32 [new, old], rows sum to 1.

    It is the filter of Pillow, and of PyTorch with antialiasing.
    """
    scale = old / new
    wide = max(scale, 1.0)
    distance = np.abs((np.arange(old) + 0.5)[None] - (np.arange(new) + 0.5)[:, None] * scale) / wide
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    matrix = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def resize_by_matrix(images: jax.Array, matrix: Callable[[int, int], np.ndarray], size: int) -> jax.Array:
    """Both axes of images [B, h, w, C] by `matrix(old, new)`: float32 [B, size, size, C]."""
    x = images.astype(jnp.float32)
    if x.shape[1:3] == (size, size):
        return x
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    x = exact("hH,bHwc->bhwc", matrix(x.shape[1], size), x)
    return exact("wW,bhWc->bhwc", matrix(x.shape[2], size), x)


def _normalised(images: jax.Array, mean_and_deviation: tuple[tuple[float, ...], tuple[float, ...]]) -> jax.Array:
    """0..255 to zero mean and unit deviation."""
    mean, deviation = (jnp.asarray(values, jnp.float32) for values in mean_and_deviation)
    return (images.astype(jnp.float32) / 255 - mean) / deviation


def _centred(images: jax.Array) -> jax.Array:
    return (images.astype(jnp.float32) - 128) / 128


def _float_bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """Each channel alone as a float image, clipped to 0..255 but not rounded."""
    channels = [Image.fromarray(np.ascontiguousarray(image[..., i], dtype=np.float32)) for i in range(image.shape[-1])]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, -1).clip(0, 255)


def _pillow(image: np.ndarray, size: int, method: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), method))


def _short_side(image: np.ndarray, side: int, size: int, method: Image.Resampling) -> np.ndarray:
    """The short side to `side` pixels, the long one in proportion and rounded down, then the middle [size, size]."""
    height, width = image.shape[:2]
    new = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    resized = image if new == (height, width) else np.asarray(Image.fromarray(image).resize(new[::-1], method))
    top, left = (round((length - size) / 2) for length in new)
    return resized[top : top + size, left : left + size]


def _bilinear(half_pixel: bool) -> Callable[[int, int], np.ndarray]:
    return functools.partial(bilinear_matrix, half_pixel=half_pixel)


def _variants(size: int) -> dict[str, tuple[Callable[[np.ndarray], np.ndarray] | None, Callable[[jax.Array], jax.Array]]]:
    """(host, device) by name."""
    bicubic, bilinear = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
    imagenet = functools.partial(_normalised, mean_and_deviation=_IMAGENET)
    return {
        "tf1": (None, lambda x: _centred(resize_by_matrix(x, _bilinear(False), size))),
        "pytorch-fid": (None, lambda x: 2 * resize_by_matrix(x.astype(jnp.float32) / 255, _bilinear(True), size) - 1),
        "clean-fid": (lambda image: _float_bicubic(image, size), _centred),
        "torch-fidelity": (None, lambda x: imagenet(resize_by_matrix(x, _bilinear(False), size))),
        "torchvision": (lambda image: _short_side(image, size * 256 // 224, size, bilinear), imagenet),
        "dinov2": (lambda image: _pillow(image, size, bicubic), imagenet),
        "dinov2-float": (None, lambda x: imagenet(resize_by_matrix(x, bicubic_matrix, size))),
        "clip": (
            lambda image: _short_side(image, size, size, bicubic),
            functools.partial(_normalised, mean_and_deviation=_CLIP),
        ),
    }


NAMES = tuple(_variants(1))


def preprocessing(name: str, size: int) -> Preprocessing:
    """A variant by name, see the table at the top of this module.

    Args:
      size: H = W of its result: 299 for Inception-v3, 224 for most others.

    Raises:
      ConfigError: an unknown name.

    >>> preprocessing("tf1", 299)(np.full((2, 32, 32, 3), 128, np.uint8)).shape
    (2, 299, 299, 3)
    """
    check_choice("preprocessing", name, NAMES)
    return Preprocessing(name, size, *_variants(size)[name])
