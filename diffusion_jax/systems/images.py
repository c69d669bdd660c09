"""Images between their forms: bytes and [-1, 1], high and low resolution, sharp and blurred."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError

RESIZE_METHODS = ("area", "bilinear", "bicubic")


def to_float(images: Any) -> jax.Array:
    """uint8 0..255 -> float32 [-1, 1]; floating images pass as float32.

    >>> to_float(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]
    """
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images.astype(jnp.float32)


def to_uint8(images: jax.Array) -> jax.Array:
    """float [-1, 1] -> uint8, clipped, and rounded half up: the inverse of `to_float` on bytes.

    >>> to_uint8(jnp.array([-1.5, -1.0, 0.0, 1.0])).tolist()
    [0, 0, 128, 255]
    """
    return jnp.clip(jnp.floor((images + 1) * 127.5 + 0.5), 0, 255).astype(jnp.uint8)


def quantize(images: jax.Array) -> jax.Array:
    """float [-1, 1] through 8 bits and back: what a later stage sees of images that were stored."""
    return to_float(to_uint8(images))


def downsample(images: jax.Array, size: tuple[int, int], method: str = "area") -> jax.Array:
    """Anti-aliased reduction of [B, H, W, C] to [B, *size, C].

    Args:
      method: "area" is the exact mean over blocks and needs integer factors; "bilinear" and "bicubic" are widened by
        the factor, as PIL does it.
    """
    batch, height, width, channels = images.shape
    if (height, width) == tuple(size):
        return images
    if method == "area":
        rows, columns = height // size[0], width // size[1]
        if (rows * size[0], columns * size[1]) != (height, width):
            raise ConfigError(
                f"area resize from {height}x{width} to {size[0]}x{size[1]} needs integer factors; use low_res_resize='bicubic'"
            )
        return images.reshape(batch, size[0], rows, size[1], columns, channels).mean((2, 4))
    kind = {"bilinear": "linear", "bicubic": "cubic"}[method]
    return jax.image.resize(images, (batch, *size, channels), kind, antialias=True)


def blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """A 3x3 Gaussian filter with a standard deviation of its own per image; edges are repeated.

    Args:
      images: [B, H, W, C].
      sigma: [B], in pixels; 0 leaves the image as it is.
    """
    side = jnp.where(sigma > 0, jnp.exp(-0.5 / jnp.maximum(sigma, 1e-6) ** 2), 0.0)[:, None, None, None]
    total = 1 + 2 * side
    padded = jnp.pad(images, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    images = (side * (padded[:, :-2] + padded[:, 2:]) + padded[:, 1:-1]) / total
    padded = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    return (side * (padded[:, :, :-2] + padded[:, :, 2:]) + padded[:, :, 1:-1]) / total


_LUMA = (0.299, 0.587, 0.114)


def luma(images: jax.Array) -> jax.Array:
    """ITU-R 601 luma of [..., 3], as [..., 1]; of one channel, the channel itself."""
    return images if images.shape[-1] == 1 else (images * jnp.array(_LUMA)).sum(-1, keepdims=True)


def with_luma(images: jax.Array, wanted: jax.Array) -> jax.Array:
    """Colours in [-1, 1] given another luma exactly: what differs from grey is kept, and reduced where it leaves the range.

    Args:
      images: [B, H, W, 3].
      wanted: [B, H, W, 1] in [-1, 1].

    >>> found = luma(with_luma(jnp.array([[[[1.0, -1.0, 0.5]]]]), jnp.array([[[[0.9]]]])))
    >>> round(float(found[0, 0, 0, 0]), 5)
    0.9
    """
    colour = images - luma(images)
    room = jnp.where(colour > 0, 1 - wanted, 1 + wanted) / jnp.maximum(jnp.abs(colour), 1e-6)
    return wanted + jnp.clip(room.min(-1, keepdims=True), 0, 1) * colour
