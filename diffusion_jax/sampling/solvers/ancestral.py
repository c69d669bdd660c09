"""Ancestral sampling, and DDIM, which draws part of its noise: one evaluation a step."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Corruption, Data, Denoised, Denoiser
from diffusion_jax.registry import part
from diffusion_jax.sampling.solvers.base import Noise, Solver, ode_step, serves_gaussian, stateless
from diffusion_jax.sampling.solvers.churn import Churn
from diffusion_jax.values import Fraction, NonNegative

Variance = Literal["fixed_small", "fixed_large", "learned_range", "learned_diagonal"]


@part("solver", "ddpm")
def ddpm(variance: Variance | Fraction | None = None) -> Solver:
    """Sample ancestrally: draw q(x_s | x_t, x0) at the predicted x0, for any pair of times; no noise at s = 0.

    Args:
      variance: replaces the process's own: "fixed_small" or "fixed_large" (or the learned one it was trained with), or
        a number in [0, 1] that interpolates the logarithms from the first to the second (Ho & Salimans 2022 use 0.3
        for 64-pixel images, arXiv 2207.12598). On few steps "fixed_large" is DDIM's "sigma-hat".

    Source: Ho et al. 2020, algorithm 2 (arXiv 2006.11239).
    """

    def check(process: Corruption, times: np.ndarray) -> None:
        serves_gaussian(process, times)
        if isinstance(variance, str) and variance.startswith("learned") and variance != process.variance:
            raise ConfigError(
                f"solver 'ddpm': the variance {variance!r} needs the network's variance channels, but the process was trained "
                f"with {process.variance!r}; use 'fixed_small' or 'fixed_large', or leave it out"
            )

    def log_variance(process: Process, denoised: Denoised, s: jax.Array, t: jax.Array, later: jax.Array) -> jax.Array:
        of = lambda mode: process.reverse_log_variance(denoised, s, t, mode, later)  # noqa: E731
        if variance is None or isinstance(variance, str):
            return of(variance)
        return (1 - variance) * of("fixed_small") + variance * of("fixed_large")

    def init(x: Data, num_steps: int) -> jax.Array:
        """The time before the one that a step leaves, 0 at first: the last step, to data, has the variance of that step."""
        return jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, denoised = denoiser.process, denoiser(x, t)
        mean = process.reverse_mean(denoised, x, s, t)
        spread = log_variance(process, denoised, s, t, jnp.where(state > 0, state, jnp.minimum(2 * t, 1.0)))
        if denoised.classifier_gradient is not None:
            mean += _moved(process, denoised.classifier_gradient, jnp.exp(spread), s, t)
        scale = jnp.where(s > 0, jnp.exp(0.5 * spread), 0.0)
        return mean + scale * noise("step"), jnp.asarray(t, state.dtype)

    return Solver(init, step, check=check)


def _moved(process: Process, gradient: Data, variance: jax.Array, s: jax.Array, t: jax.Array) -> Data:
    """Return what the mean lacks to have been moved by variance * gradient, as the x0 it was made of has been already.

    Source: Dhariwal & Nichol 2021, algorithm 1 (arXiv 2105.05233).
    """
    (alpha_s, _), (alpha_t, sigma_t) = process.alpha_sigma(s), process.alpha_sigma(t)
    forward = -jnp.expm1(-process.drop(s, t)) * sigma_t**2
    return (variance - alpha_s / jnp.where(alpha_t > 0, alpha_t, 1.0) * forward) * gradient


@part("solver", "ddim")
def ddim(eta: Fraction = 0.0) -> Solver:
    """Step as DDIM does: deterministic at eta = 0; at eta = 1 it is `ddpm("fixed_small")`.

    Args:
      eta: the noise added, as a share of the posterior's standard deviation; for more noise, `ddpm("fixed_large")`.

    Source: Song et al. 2021, equations 12 and 16 (arXiv 2010.02502).
    """

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        denoised, process = denoiser(x, t), denoiser.process
        if eta == 0:
            return ode_step(process, denoised, s), state
        alpha, sigma = process.alpha_sigma(s)
        variance = eta**2 * -jnp.expm1(-process.drop(s, t)) * sigma**2
        kept = jnp.sqrt(jnp.maximum(sigma**2 - variance, 0.0))
        return alpha * denoised.x0 + kept * denoised.eps + jnp.sqrt(variance) * noise("step"), state

    return Solver(stateless, step)


@part("solver", "euler")
def euler(
    s_churn: NonNegative = 0.0, s_min: NonNegative = 0.0, s_max: NonNegative | None = None, s_noise: NonNegative = 1.0
) -> Solver:
    """Step by Euler's method on the probability-flow ODE in sigma / alpha, optionally with churn: noise before each step.

    In these coordinates it is DDIM at eta = 0, and on the straight line it is x + (s - t)(eps - x0), the flow's Euler.

    Args:
      s_churn, s_min, s_max, s_noise: as of `heun`; deterministic at s_churn = 0.

    Source: Karras et al. 2022, section 3, and algorithm 2 without its correction (arXiv 2206.00364).
    """
    churn = Churn("euler", s_churn, s_min, s_max, s_noise)

    def step(denoiser: Denoiser, x: Data, raise_by: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        x, t = churn(denoiser.process, x, t, raise_by, noise)
        return ode_step(denoiser.process, denoiser(x, t), s), raise_by

    return Solver(churn.init, step)


@part("solver", "euler_ancestral")
def euler_ancestral(eta: Fraction = 1.0) -> Solver:
    """Take Euler's step to a lower level sigma / alpha, and add noise from there up to the level asked for.

    The levels are down^2 + up^2 = level_s^2 with up = eta level_s sqrt(1 - level_s^2 / level_t^2), and the step to `down`
    is x0 + down * eps: DDIM's rule, whose eta it is. At eta = 1 it is `ddpm("fixed_small")`.

    Args:
      eta: the noise added, as a share of the posterior's standard deviation.

    Source: Song et al. 2021, equation 12 (arXiv 2010.02502), in the coordinates of Karras et al. 2022 (arXiv 2206.00364).
    """
    return ddim(eta)
