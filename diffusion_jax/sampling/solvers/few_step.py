"""Solvers for networks that jump to data: they return to a smaller noise level, and jump again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Corruption, Data, Denoiser
from diffusion_jax.registry import part
from diffusion_jax.sampling.solvers.base import Noise, Solver, ode_step, serves_gaussian, stateless
from diffusion_jax.values import Fraction, NonNegative, Positive


@part("solver", "consistency")
def consistency(sigma_min: NonNegative = 0.002) -> Solver:
    """Return x_s = alpha_s (x0 + sqrt(level_s^2 - sigma_min^2) z), with fresh noise z; the prediction itself at s = 0.

    One evaluation a step; a grid of one step is one jump from noise to data.

    Args:
      sigma_min: the level sigma / alpha of what the model returns, whose noise is already in it.

    Source: Song et al. 2023, algorithm 1 (arXiv 2303.01469).
    """

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        x0 = denoiser(x, t).x0
        alpha, sigma = denoiser.process.alpha_sigma(s)
        spread = jnp.sqrt(jnp.maximum(sigma**2 - (alpha * sigma_min) ** 2, 0.0))
        return alpha * x0 + spread * noise("step"), state

    return Solver(stateless, step)


@part("solver", "lcm")
def lcm(timestep_scaling: Positive = 10.0, sigma_data: Positive = 0.5) -> Solver:
    """Jump to f = c_skip x_t + c_out x0, then draw q(x_s | f), as latent consistency models are run.

    It solves no ODE: its samples are as good as the jumps, which a network must have learnt to make. With u =
    timestep_scaling * index, c_skip = sigma_data^2 / (u^2 + sigma_data^2) and c_out = u / sqrt(u^2 + sigma_data^2); the
    index, of 1,000 (1000 t in continuous time), is 0 at a chain's first time, where f = x_t.

    Args:
      timestep_scaling, sigma_data: of the mix.

    Source: Luo et al. 2023, section 4 (arXiv 2310.04378).
    """

    def check(process: Corruption, times: np.ndarray) -> None:
        serves_gaussian(process, times)
        if process.schedule.family != "vp":
            raise ConfigError(
                f"solver 'lcm': the boundary scalings are defined on variance-preserving processes, and the schedule "
                f"{process.schedule.name!r} is not one; use 'consistency', or a solver of the flow such as 'ddim' or 'dpmpp_2m'"
            )

    def mixed(process: Process, x: Data, x0: Data, t: jax.Array) -> Data:
        chain = process.num_steps
        index = 1000 * t if chain is None else (t * chain - 1) * (1000 / chain)
        u = timestep_scaling * index
        return sigma_data**2 / (u**2 + sigma_data**2) * x + u / jnp.hypot(u, sigma_data) * x0

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, x0 = denoiser.process, denoiser(x, t).x0
        alpha, sigma = process.alpha_sigma(s)
        return alpha * mixed(process, x, x0, t) + sigma * noise("step"), state

    return Solver(stateless, step, check=check)


@part("solver", "tcd")
def tcd(gamma: Fraction = 0.3) -> Solver:
    """Jump beyond the time asked for, to u = (1 - gamma) s, and add the noise of the process from u up to s.

    It solves no ODE: networks learn such jumps by trajectory consistency distillation. One evaluation a step, stochastic but
    at gamma = 0, where it is `ddim`; any Gaussian process. On a chain u is the index floor((1 - gamma) index(s)).

    Args:
      gamma: how far beyond; libraries call it eta. More is for fewer steps.

    Source: Zheng et al. 2024, section 4.2 and algorithm 2 (arXiv 2402.19159).
    """

    def beyond(process: Process, s: jax.Array) -> jax.Array:
        chain = process.num_steps
        if chain is None:
            return (1 - gamma) * s
        index = jnp.floor((1 - gamma) * (jnp.round(s * chain) - 1))
        return jnp.where(s > 0, (index + 1) / chain, 0.0).astype(s.dtype)

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, denoised = denoiser.process, denoiser(x, t)
        if gamma == 0:
            return ode_step(process, denoised, s), state
        u = beyond(process, s)
        ratio = process.alpha_sigma(s)[0] / process.alpha_sigma(u)[0]
        change = jnp.where(u < s, -process.drop(u, s), 0.0)
        spread = process.alpha_sigma(s)[1] * jnp.sqrt(-jnp.expm1(change))
        return ratio * ode_step(process, denoised, u) + spread * noise("step"), state

    return Solver(stateless, step)
