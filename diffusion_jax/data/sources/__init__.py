"""Where examples come from."""

from __future__ import annotations

from diffusion_jax.data.sources.base import ArraySource, Example, Source
from diffusion_jax.data.sources.bundled import digits, mnist

__all__ = ["ArraySource", "Example", "Source", "digits", "mnist"]
