"""Where examples come from."""

from __future__ import annotations

from diffusion_jax.data.sources.base import ArraySource, Example, Identified, Source
from diffusion_jax.data.sources.bundled import Photographs, digits, mnist
from diffusion_jax.data.sources.folder import Folder
from diffusion_jax.data.sources.shapes import Shapes
from diffusion_jax.data.sources.text import Embeddings, OneHotWords, one_hot
from diffusion_jax.data.sources.tfds import Tfds

__all__ = [
    "ArraySource",
    "Embeddings",
    "Example",
    "Folder",
    "Identified",
    "OneHotWords",
    "Photographs",
    "Shapes",
    "Source",
    "Tfds",
    "digits",
    "mnist",
    "one_hot",
]
