"""What sampling, editing and evaluation share: trained runs, cascades, requests, the sharded generator, sample folders."""

from __future__ import annotations

from diffusion_jax.inference.cascade import Cascade, Stage, StageParams
from diffusion_jax.inference.generator import Generator
from diffusion_jax.inference.requests import Requests
from diffusion_jax.inference.run import Run, Runs, find
from diffusion_jax.inference.sample_sets import SampleSet, open_samples
from diffusion_jax.inference.samples import SampleFolder

__all__ = [
    "Cascade",
    "Generator",
    "Requests",
    "Run",
    "Runs",
    "SampleFolder",
    "SampleSet",
    "Stage",
    "StageParams",
    "find",
    "open_samples",
]
