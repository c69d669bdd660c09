"""Heun's method of order 2 on the probability-flow ODE, with EDM's churn."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoised, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver, level, needs_signal, ode_step, serves_gaussian


@register("solver", "heun")
def heun(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0, space: str = "x") -> Solver:
    """Heun's method of order 2, optionally with churn: noise added before each step. 2N - 1 evaluations.

    Args:
      s_churn: how much noise over the whole run; each of N steps raises sigma / alpha by min(s_churn / N, sqrt(2) - 1).
      s_min, s_max: the levels sigma / alpha between which noise is added. A level is not raised above the schedule's
        largest, so at t = 1 none is added.
      s_noise: the standard deviation of the added noise, about 1.
      space: where alpha is not 1, the coordinates of the corrected step. "x": bears a start at little or no signal, and
        is the flow's Heun on the straight line. "sigma": x / alpha against sigma / alpha, which is exactly EDM's sampler
        on any network; it needs signal at the first time. Both are of order 2, and the same where alpha = 1.

    Source: Karras et al. 2022, algorithms 1 and 2 (arXiv 2206.00364).
    """
    if s_churn < 0 or s_min > s_max:
        raise ConfigError(
            f"solver 'heun': needs s_churn >= 0 and s_min <= s_max, got s_churn={s_churn}, s_min={s_min}, s_max={s_max}"
        )

    if space not in ("x", "sigma"):
        raise ConfigError(f"solver 'heun': unknown space {space!r} (known: x, sigma)")

    def init(x: jax.Array, num_steps: int) -> jax.Array:
        return jnp.asarray(min(s_churn / num_steps, math.sqrt(2) - 1), x.dtype)

    def churn(process: Process, x: Data, t: jax.Array, raise_by: jax.Array, noise: Noise) -> tuple[Data, jax.Array]:
        here = level(process, t)
        within = (here >= s_min) & (here <= s_max) & jnp.isfinite(here)
        safe = jnp.where(within, here, 1.0)
        raised = jnp.where(within, process.schedule.inverse(-2 * jnp.log(safe * (1 + raise_by))), t)
        alpha, alpha_raised = process.alpha_sigma(t)[0], process.alpha_sigma(raised)[0]
        # The schedule may end below the raised level: add just the noise that reaches the time found.
        extra = jnp.where(within, jnp.sqrt(jnp.maximum(level(process, raised) ** 2 - safe**2, 0.0)), 0.0)
        ratio = jnp.where(within, alpha_raised / jnp.where(within, alpha, 1.0), 1.0)
        return ratio * x + alpha_raised * extra * s_noise * noise("churn"), raised

    def step(denoiser: Denoiser, x: Data, raise_by: jax.Array, t: jax.Array, s: jax.Array, noise: Noise):
        process = denoiser.process
        if s_churn:
            x, t = churn(process, x, t, raise_by, noise)
        first = denoiser(x, t)
        predicted = ode_step(process, first, s)

        def corrected() -> Data:
            return predicted + _correction(process, first, denoiser(predicted, s), t, s, space)

        # A condition, not a selection: the last step costs one evaluation.
        return jax.lax.cond(s > 0, corrected, lambda: predicted), raise_by

    return Solver(
        init, step, evaluations=2, check=needs_signal("'heun' in the space 'sigma'") if space == "sigma" else serves_gaussian
    )


def _correction(process: Process, first: Denoised, second: Denoised, t: jax.Array, s: jax.Array, space: str) -> Data:
    """Half of alpha times the step in sigma / alpha times the change of slope.

    With the alpha of s it is Karras' correction of x / alpha. With that of t, the same to second order and where alpha
    is 1, it is Heun's in x and t on the straight line, finite from zero SNR and small from a low one.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    scale = 1.0 if space == "x" else alpha_s / alpha_t
    return 0.5 * scale * (alpha_t / alpha_s * sigma_s - sigma_t) * (second.eps - first.eps)
