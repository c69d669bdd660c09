"""The mathematics: schedules, parameterisations, losses and weightings, in continuous time t in [0, 1]."""

from __future__ import annotations

from diffusion_jax.process import (
    consistency,
    edm_design,
    likelihood,
    losses,
    noise_levels,
    parameterisations,
    schedules,
    time_samplers,
    weightings,
)
from diffusion_jax.process.process import Process
from diffusion_jax.process.schedules import Schedule
from diffusion_jax.process.types import Corruption, Denoised, Denoiser, expand

__all__ = [
    "Corruption",
    "Denoised",
    "Denoiser",
    "Process",
    "Schedule",
    "consistency",
    "edm_design",
    "expand",
    "likelihood",
    "losses",
    "noise_levels",
    "parameterisations",
    "schedules",
    "time_samplers",
    "weightings",
]
