"""Solvers: pairs (init, step) that walk x from time t to an earlier time s with a `Denoiser`.

All but `categorical`, which draws bits and categories, are written in (alpha, sigma) and log-SNR, so each serves every family
of Gaussian processes. The levels sigma / alpha are the time of the probability-flow ODE, d(x / alpha) = eps d(sigma / alpha).
"""

from __future__ import annotations

from diffusion_jax.sampling.solvers.ancestral import ddim, ddpm, euler, euler_ancestral
from diffusion_jax.sampling.solvers.base import Draw, Noise, Solver
from diffusion_jax.sampling.solvers.discrete import categorical
from diffusion_jax.sampling.solvers.dpm import kdpm2, kdpm2_ancestral
from diffusion_jax.sampling.solvers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m, dpmpp_sde
from diffusion_jax.sampling.solvers.extrapolation import deis, lms
from diffusion_jax.sampling.solvers.few_step import consistency, lcm, tcd
from diffusion_jax.sampling.solvers.multistep import pndm, unipc
from diffusion_jax.sampling.solvers.runge_kutta import heun, in_time
from diffusion_jax.sampling.solvers.score_sde import langevin, predictor_corrector, reverse_diffusion

__all__ = [
    "Draw",
    "Noise",
    "Solver",
    "categorical",
    "consistency",
    "ddim",
    "ddpm",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "in_time",
    "kdpm2",
    "kdpm2_ancestral",
    "langevin",
    "lcm",
    "lms",
    "pndm",
    "predictor_corrector",
    "reverse_diffusion",
    "tcd",
    "unipc",
]
