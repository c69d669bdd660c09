"""Where examples come from."""

from __future__ import annotations

from diffusion_jax.data.sources.base import ArraySource, Example, Source
from diffusion_jax.data.sources.bundled import digits, mnist
from diffusion_jax.data.sources.folder import Folder
from diffusion_jax.data.sources.photographs import Photographs
from diffusion_jax.data.sources.shapes import Shapes
from diffusion_jax.data.sources.tfds import Tfds
from diffusion_jax.data.sources.words import OneHotWords, one_hot

__all__ = [
    "ArraySource",
    "Example",
    "Folder",
    "OneHotWords",
    "Photographs",
    "Shapes",
    "Source",
    "Tfds",
    "digits",
    "mnist",
    "one_hot",
]
