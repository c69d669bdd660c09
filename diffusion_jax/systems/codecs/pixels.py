"""Pixels as they are: bytes 0..255 become floats in [-1, 1]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import DataError
from diffusion_jax.registry import register
from diffusion_jax.spec import Spec


def check_pixels(images: Any) -> None:
    """Raise a `DataError` unless images are uint8, or floating and not far outside of [-1, 1] (no value beyond 3).

    The values of traced images pass unseen.
    """
    if images.dtype == np.uint8:
        return
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise DataError(f"images must be uint8, or floating in [-1, 1], got {images.dtype}: for other depths, scale them first")
    if isinstance(images, jax.core.Tracer) or not images.size or not getattr(images, "is_fully_addressable", True):
        return
    values = np.asarray(images)
    low, high = values.min(), values.max()
    if not (-3 <= low and high <= 3):
        raise DataError(
            f"floating images must lie in [-1, 1], got values from {low:g} to {high:g}: give uint8, or x / 127.5 - 1"
        )


def to_float(images: Any) -> jax.Array:
    """Scale uint8 0..255 to float32 [-1, 1]; floating images pass as float32.

    Raises:
      DataError: images of other integers, or far outside of [-1, 1]; see `check_pixels`.

    >>> to_float(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]
    """
    images = images if hasattr(images, "dtype") else jnp.asarray(images)
    check_pixels(images)
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images.astype(jnp.float32)


def to_uint8(images: jax.Array) -> jax.Array:
    """Scale floats in [-1, 1] to uint8, clipped, and rounded half up: the inverse of `to_float` on bytes.

    >>> to_uint8(jnp.array([-1.5, -1.0, 0.0, 1.0])).tolist()
    [0, 0, 128, 255]
    """
    return jnp.clip(jnp.floor((images + 1) * 127.5 + 0.5), 0, 255).astype(jnp.uint8)


@register("codec", "pixels")
@dataclasses.dataclass(frozen=True)
class Pixels:
    """The identity of images and videos, bytes scaled to [-1, 1]."""

    range = (-1.0, 1.0)
    needs = ()

    def spec(self, data: Spec) -> Spec:
        """Return the data's own spec."""
        return data

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raise a `DataError` for images that are neither bytes nor in the range."""
        check_pixels(batch["image"])

    def encode(self, frozen: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array) -> jax.Array:
        """Scale batch["image"], uint8 [B, ...], to float32 in [-1, 1]; floating images pass."""
        return to_float(batch["image"])

    def decode(self, frozen: Mapping[str, Any], x: jax.Array, *, quantize: bool = True) -> jax.Array:
        """Scale [N, ...] to uint8; without `quantize` the floats are returned as they are."""
        return to_uint8(x) if quantize else x
