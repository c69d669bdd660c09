"""Conditioners: one file, and one object, for each kind of conditioning. Every module of this folder is registered."""

from __future__ import annotations

from diffusion_jax.systems.conditioners.base import Conditioner, DataOf, Flag, Known, gather
from diffusion_jax.systems.conditioners.image import ImageAndMask, panorama
from diffusion_jax.systems.conditioners.labels import Labels, check_labels
from diffusion_jax.systems.conditioners.low_res import LowRes
from diffusion_jax.systems.conditioners.text import Text
from diffusion_jax.systems.conditioners.vector import Vector

__all__ = [
    "Conditioner",
    "DataOf",
    "Flag",
    "ImageAndMask",
    "Known",
    "Labels",
    "LowRes",
    "Text",
    "Vector",
    "check_labels",
    "gather",
    "panorama",
]
