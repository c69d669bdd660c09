"""Time grids: the descending times that a sampler visits, from noise to exactly 0.

A grid is a function of the process, so that one name serves discrete chains and continuous time. Discrete indices i of T
are the times (i + 1) / T; in continuous time the same rules run on [0, 1].
"""

from __future__ import annotations

from diffusion_jax.sampling.grids.base import Grid, of_gaussian
from diffusion_jax.sampling.grids.of_indices import dpm_solver, indices, lcm, leading, quadratic, respaced, trailing, uniform
from diffusion_jax.sampling.grids.of_levels import flow, karras, levels, log_snr, times

__all__ = [
    "Grid",
    "dpm_solver",
    "flow",
    "indices",
    "karras",
    "lcm",
    "leading",
    "levels",
    "log_snr",
    "of_gaussian",
    "quadratic",
    "respaced",
    "times",
    "trailing",
    "uniform",
]
