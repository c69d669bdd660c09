"""Sources and pipelines: numpy in, numpy out, random access. No JAX in here."""

from __future__ import annotations

from diffusion_jax.data import degradations, sources, transforms
from diffusion_jax.data.pipeline import Pipeline, from_config

__all__ = ["Pipeline", "degradations", "from_config", "sources", "transforms"]
