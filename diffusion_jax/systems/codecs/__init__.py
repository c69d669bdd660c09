"""Codecs: between data as sources have them and the space in which a process works; one file an idea."""

from __future__ import annotations

from diffusion_jax.systems.codecs.base import Codec, EncodesCategories
from diffusion_jax.systems.codecs.binary import Binary
from diffusion_jax.systems.codecs.pixels import Pixels, to_float, to_uint8

__all__ = ["Binary", "Codec", "EncodesCategories", "Pixels", "to_float", "to_uint8"]
