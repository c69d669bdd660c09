"""Consistency sampling in several steps: predict clean data, noise it again, lower."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver, serves_all, stateless


@register("solver", "lcm")
def lcm(boundary: bool = True, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> Solver:
    """Jump to the predicted x0, then draw q(x_s | x0): no solver of the ODE, but how consistency models are run.

    Args:
      boundary: mix f = c_skip x_t + c_out x0, as latent consistency models do, with c_skip = sigma_data^2 / (u^2 +
        sigma_data^2), c_out = u / sqrt(u^2 + sigma_data^2) and u = timestep_scaling * index, which is 0 at the first
        index of a chain of 1000 (1000 t in continuous time). False: f = x0, for networks that meet the boundary
        condition themselves, and for any process.
      timestep_scaling, sigma_data: of that mix.

    Source: Luo et al. 2023, section 4 (arXiv 2310.04378); Song et al. 2023, algorithm 1 (arXiv 2303.01469).
    """
    if timestep_scaling <= 0 or sigma_data <= 0:
        raise ConfigError(
            f"solver 'lcm': needs timestep_scaling > 0 and sigma_data > 0, got {timestep_scaling} and {sigma_data}"
        )

    def check(process: Process, times: np.ndarray) -> None:
        if process.schedule.family != "vp":
            raise ConfigError(
                f"solver 'lcm': the boundary scalings are defined on variance-preserving processes, and the schedule "
                f"{process.schedule.name!r} is not one; use boundary=False, or a solver such as 'ddim' or 'dpmpp_2m'"
            )

    def mixed(process: Process, x: Data, x0: Data, t: jax.Array) -> Data:
        chain = process.num_steps
        index = 1000 * t if chain is None else (t * chain - 1) * (1000 / chain)
        u = timestep_scaling * index
        return sigma_data**2 / (u**2 + sigma_data**2) * x + u / jnp.hypot(u, sigma_data) * x0

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, x0 = denoiser.process, denoiser(x, t).x0
        clean = mixed(process, x, x0, t) if boundary else x0
        alpha, sigma = process.alpha_sigma(s)
        return alpha * clean + sigma * noise("step"), state

    return Solver(stateless, step, check=check if boundary else serves_all)
