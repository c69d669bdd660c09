"""Where examples come from."""

from __future__ import annotations

from diffusion_jax.data.sources.base import ArraySource, Example, Source
from diffusion_jax.data.sources.bundled import digits, mnist
from diffusion_jax.data.sources.folder import Folder
from diffusion_jax.data.sources.shapes import Shapes
from diffusion_jax.data.sources.tfds import Tfds

__all__ = ["ArraySource", "Example", "Folder", "Shapes", "Source", "Tfds", "digits", "mnist"]
