"""Pixels as they are: bytes 0..255 become floats in [-1, 1]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.registry import register
from diffusion_jax.spec import Spec


def to_float(images: Any) -> jax.Array:
    """Scale uint8 0..255 to float32 [-1, 1]; floating images pass as float32.

    >>> to_float(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]
    """
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

    def encode(self, frozen: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array) -> jax.Array:
        """Scale batch["image"], uint8 [B, ...], to float32 in [-1, 1]; floating images pass."""
        return to_float(batch["image"])

    def decode(self, frozen: Mapping[str, Any], x: jax.Array, *, quantize: bool = True) -> jax.Array:
        """Scale [N, ...] to uint8; without `quantize` the floats are returned as they are."""
        return to_uint8(x) if quantize else x
