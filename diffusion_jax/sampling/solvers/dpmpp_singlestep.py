"""DPM-Solver++ with two evaluations a step, for the ODE (2S) and the SDE: the midpoint rule in half-log-SNR."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver, stateless
from diffusion_jax.sampling.solvers.exponential import advance, deviation, span


def middle(process: Any, t: jax.Array, s: jax.Array, fraction: float = 0.5) -> jax.Array:
    """The time between t and s at that fraction of the step in half-log-SNR, a scalar of t's dtype."""
    low, high = process.log_snr(t), process.log_snr(s)
    return process.schedule.inverse(low + fraction * (high - low)).astype(t.dtype)


def midpoint_step(
    denoiser: Denoiser, x: Data, x0: Data, t: jax.Array, s: jax.Array, eta: float = 0.0, noise: Noise | None = None
) -> Data:
    """From t to s with the prediction x0 at t and one more in the middle; t of finite log-SNR and s > 0."""
    process = denoiser.process
    between = middle(process, t, s)
    inner = advance(process, x, x0, t, between, eta)
    if eta:
        drawn = deviation(process, t, between, eta) * noise("middle")
        inner = inner + drawn
    slope = (denoiser(inner, between).x0 - x0) * (span(process, t, s) / span(process, t, between))
    end = advance(process, x, x0 + 0.5 * slope, t, s, eta)
    if eta:
        # The path's own noise: that of the first half, carried on, and that of the second.
        carried = process.alpha_sigma(s)[1] / process.alpha_sigma(between)[1] * jnp.exp(-eta * span(process, between, s))
        end = end + carried * drawn + deviation(process, between, s, eta) * noise("step")
    return end


@register("solver", "dpmpp_2s")
def dpmpp_2s() -> Solver:
    """DPM-Solver++(2S): order 2 without history; first order at the step to 0, and from zero SNR. 2N - 1 evaluations.

    Source: Lu et al. 2022, algorithm 1 with r = 1/2 (arXiv 2211.01095).
    """
    return _midpoint(0.0)


@register("solver", "dpmpp_sde")
def dpmpp_sde(eta: float = 1.0) -> Solver:
    """DPM-Solver++(2S) on the reverse SDE, with one path of noise through the middle of each step. 2N - 1 evaluations.

    Args:
      eta: in [0, 1], how much of the SDE's noise: 1 is the reverse SDE, 0 is `dpmpp_2s`.

    Source: Lu et al. 2022, sections 4 and 5 (arXiv 2211.01095). Libraries draw the path in sigma; here it is drawn with
    the SDE's own correlation, which needs no tree of Brownian increments.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"solver 'dpmpp_sde': eta must lie in [0, 1], got {eta}")
    return _midpoint(eta)


def _midpoint(eta: float) -> Solver:
    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, x0 = denoiser.process, denoiser(x, t).x0

        def one() -> Data:
            end = advance(process, x, x0, t, s, eta)
            return (end + deviation(process, t, s, eta) * noise("step") if eta else end).astype(x.dtype)

        def two() -> Data:
            return midpoint_step(denoiser, x, x0, t, s, eta, noise).astype(x.dtype)

        # A condition, not a selection: the last step costs one evaluation.
        return jax.lax.cond((s > 0) & jnp.isfinite(process.log_snr(t)), two, one), state

    return Solver(stateless, step, evaluations=2)
