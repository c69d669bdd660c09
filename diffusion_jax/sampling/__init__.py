"""Sampling: solvers, time grids and guidance, as functions over a `Denoiser`."""

from __future__ import annotations

from diffusion_jax.sampling import consistency, grids, guidance, solvers
from diffusion_jax.sampling.sample import invert, sample
from diffusion_jax.sampling.solvers import Solver

times = grids

__all__ = ["Solver", "consistency", "grids", "guidance", "invert", "sample", "solvers", "times"]
