"""Bits: bytes become 0 and 1, black and white."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.registry import check_fields, register
from diffusion_jax.spec import Spec
from diffusion_jax.systems.codecs.pixels import check_pixels, to_float, to_uint8
from diffusion_jax.values import Fraction


@register("codec", "binary")
@dataclasses.dataclass(frozen=True)
class Binary:
    """Images whose pixels are categories 0 and 1.

    Args:
      threshold: pixels of at least this part of white are 1. None draws 1 with the pixel's own brightness as the probability,
        anew whenever an image is seen (Salakhutdinov & Murray 2008).

    Raises:
      ConfigError: a threshold outside [0, 1].
    """

    threshold: Fraction | None = 0.5

    range = None
    needs = ()
    num_values = 2

    def __post_init__(self) -> None:
        check_fields("codec 'binary'", Binary, {"threshold": self.threshold})

    def spec(self, data: Spec) -> Spec:
        """Return the data's own spec: a bit for each number."""
        return data

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raise a `DataError` for images that are neither bytes nor in [-1, 1]."""
        check_pixels(batch["image"])

    def encode(self, frozen: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array) -> jax.Array:
        """Make int32 bits of batch["image"], uint8 or floating in [-1, 1], [B, ...]; the key is for the random ones."""
        brightness = (to_float(batch["image"]) + 1) / 2
        if self.threshold is not None:
            return (brightness >= self.threshold).astype(jnp.int32)
        return jax.random.bernoulli(key, brightness).astype(jnp.int32)

    def decode(self, frozen: Mapping[str, Any], x: jax.Array, *, quantize: bool = True) -> jax.Array:
        """Make of bits, [N, ...], the bytes 0 and 255; without `quantize` float32 -1 and 1. Masks are grey."""
        scaled = jnp.where(x > 1, 0.0, 2.0 * x - 1)
        return to_uint8(scaled) if quantize else scaled
