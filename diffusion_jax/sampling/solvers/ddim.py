"""DDIM and Euler: one step of the flow with part of the noise drawn anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver, ode_step, stateless


@register("solver", "ddim")
def ddim(eta: float = 0.0) -> Solver:
    """DDIM: deterministic at eta = 0; at eta = 1 it is `ddpm("fixed_small")`.

    Args:
      eta: in [0, 1], the noise added, as a share of the posterior's standard deviation.

    Source: Song et al. 2021, equations 12 and 16 (arXiv 2010.02502).
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"solver 'ddim': eta must lie in [0, 1], got {eta} (for more noise: ddpm with 'fixed_large')")

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        denoised, process = denoiser(x, t), denoiser.process
        if eta == 0:
            return ode_step(process, denoised, s), state
        alpha, sigma = process.alpha_sigma(s)
        variance = eta**2 * -jnp.expm1(process.log_snr(t) - process.log_snr(s)) * sigma**2
        kept = jnp.sqrt(jnp.maximum(sigma**2 - variance, 0.0))
        return alpha * denoised.x0 + kept * denoised.eps + jnp.sqrt(variance) * noise("step"), state

    return Solver(stateless, step)


@register("solver", "euler")
def euler() -> Solver:
    """Euler's method on the probability-flow ODE in sigma / alpha.

    In these coordinates it is DDIM at eta = 0, and on the straight line it is x + (s - t)(eps - x0), the flow's Euler.

    Source: Karras et al. 2022, section 3 (arXiv 2206.00364).
    """
    return ddim(0.0)


@register("solver", "euler_ancestral")
def euler_ancestral(eta: float = 1.0) -> Solver:
    """Euler's step to a lower level sigma / alpha, and noise from there up to the level asked for.

    The levels are down^2 + up^2 = level_s^2 with up = eta level_s sqrt(1 - level_s^2 / level_t^2), and the step to `down`
    is x0 + down * eps: DDIM's rule, whose eta it is. At eta = 1 it is `ddpm("fixed_small")`.

    Args:
      eta: in [0, 1], the noise added, as a share of the posterior's standard deviation.

    Source: Song et al. 2021, equation 12 (arXiv 2010.02502), in the coordinates of Karras et al. 2022 (arXiv 2206.00364).
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"solver 'euler_ancestral': eta must lie in [0, 1], got {eta}")
    return ddim(eta)
