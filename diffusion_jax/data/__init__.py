"""Sources and pipelines: numpy in, numpy out, random access. No JAX in here."""

from __future__ import annotations

from diffusion_jax.data import degradations, sources, transforms
from diffusion_jax.data.config import Data, from_config
from diffusion_jax.data.pipeline import Pipeline, numeric

__all__ = ["Data", "Pipeline", "degradations", "from_config", "numeric", "sources", "transforms"]
