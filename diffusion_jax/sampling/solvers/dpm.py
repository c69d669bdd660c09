"""DPM-Solver-2 as Karras' libraries run it: Euler's step to the middle in log-SNR, and the slope there for the whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import part
from diffusion_jax.sampling.solvers.base import Noise, Solver, level, ode_step, stateless
from diffusion_jax.values import Fraction


@part("solver", "kdpm2")
def kdpm2() -> Solver:
    """Step as DPM-Solver-2: order 2 without history, deterministic; order 1 at the step to 0, and from zero SNR.

    It is the midpoint rule on the noise in the logarithm of sigma / alpha, for every Gaussian process, in 2N - 1
    evaluations; `dpmpp_2s` is the same on x0.

    Source: Lu et al. 2022, algorithm 1 with r = 1/2 (arXiv 2206.00927), as in k-diffusion's sample_dpm_2.
    """
    return _midpoint(0.0)


@part("solver", "kdpm2_ancestral")
def kdpm2_ancestral(eta: Fraction = 1.0) -> Solver:
    """Step as `kdpm2` to a lower level sigma / alpha, and add noise up to the level asked for; stochastic.

    The levels are those of `euler_ancestral`. It serves every Gaussian process, in 2N - 1 evaluations.

    Args:
      eta: the noise added, as a share of the posterior's standard deviation; 0 is `kdpm2`.

    Source: k-diffusion's sample_dpm_2_ancestral, after Lu et al. 2022 (arXiv 2206.00927).
    """
    return _midpoint(eta)


def _midpoint(eta: float) -> Solver:
    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, first = denoiser.process, denoiser(x, t)
        (alpha, sigma), change = process.alpha_sigma(s), -process.drop(s, t)
        kept = (1 - eta**2) + eta**2 * jnp.exp(change) if eta else jnp.ones_like(change)  # of the variance, at the lower level
        down = sigma * jnp.sqrt(kept)

        def one() -> Data:
            return (alpha * first.x0 + down * first.eps).astype(x.dtype)

        def two() -> Data:
            between = process.log_snr(t) - 0.5 * (change + jnp.log(kept))  # half way to the lower level
            middle = process.schedule.inverse(between).astype(t.dtype)
            second = denoiser(ode_step(process, first, middle), middle)
            return (one() + (down - alpha * level(process, t)) * (second.eps - first.eps)).astype(x.dtype)

        # A condition, not a selection: the last step costs one evaluation.
        end = jax.lax.cond((s > 0) & jnp.isfinite(process.log_snr(t)), two, one)
        if eta:
            end = end + eta * sigma * jnp.sqrt(-jnp.expm1(change)) * noise("step")
        return end, state

    return Solver(stateless, step, evaluations=2)
