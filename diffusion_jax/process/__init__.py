"""The mathematics: schedules, parameterisations, losses and weightings, in continuous time t in [0, 1]."""

from __future__ import annotations

from diffusion_jax.process import (
    consistency,
    discrete,
    edm_design,
    likelihood,
    losses,
    noise_levels,
    parameterisations,
    schedules,
    sub_vp,
    time_samplers,
    weightings,
)
from diffusion_jax.process.discrete import Categorical, binomial
from diffusion_jax.process.process import Process
from diffusion_jax.process.schedules import Schedule
from diffusion_jax.process.types import Corruption, Denoised, Denoiser, expand

__all__ = [
    "Categorical",
    "Corruption",
    "Denoised",
    "Denoiser",
    "Process",
    "Schedule",
    "binomial",
    "consistency",
    "discrete",
    "edm_design",
    "expand",
    "likelihood",
    "losses",
    "noise_levels",
    "parameterisations",
    "schedules",
    "sub_vp",
    "time_samplers",
    "weightings",
]
