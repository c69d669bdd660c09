"""Sampling: solvers, time grids and guidance, as functions over a `Denoiser`."""

from __future__ import annotations

from diffusion_jax.sampling import editing, edm_design, grids, guidance, latents, solvers
from diffusion_jax.sampling.loop import invert, sample
from diffusion_jax.sampling.solvers import Solver

times = grids

__all__ = ["Solver", "editing", "edm_design", "grids", "guidance", "invert", "latents", "sample", "solvers", "times"]
