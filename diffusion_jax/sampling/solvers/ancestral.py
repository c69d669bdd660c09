"""Ancestral sampling, and DDIM, which draws part of its noise: one evaluation a step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process.process import VARIANCES, Process
from diffusion_jax.process.types import Corruption, Data, Denoised, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver, ode_step, serves_gaussian, stateless


@register("solver", "ddpm")
def ddpm(variance: str | float | None = None) -> Solver:
    """Sample ancestrally: draw q(x_s | x_t, x0) at the predicted x0, for any pair of times; no noise at s = 0.

    Args:
      variance: replaces the process's own: "fixed_small" or "fixed_large" (or the learned one it was trained with), or
        a number in [0, 1] that interpolates the logarithms from the first to the second (Ho & Salimans 2022 use 0.3
        for 64-pixel images, arXiv 2207.12598). On few steps "fixed_large" is DDIM's "sigma-hat".

    Source: Ho et al. 2020, algorithm 2 (arXiv 2006.11239).
    """
    if isinstance(variance, str):
        check_choice("solver 'ddpm': variance", variance, VARIANCES)
    if isinstance(variance, int | float) and not 0 <= variance <= 1:
        raise ConfigError(f"solver 'ddpm': a variance that interpolates must lie in [0, 1], got {variance}")

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


@register("solver", "ddim")
def ddim(eta: float = 0.0) -> Solver:
    """Step as DDIM does: deterministic at eta = 0; at eta = 1 it is `ddpm("fixed_small")`.

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
        variance = eta**2 * -jnp.expm1(-process.drop(s, t)) * sigma**2
        kept = jnp.sqrt(jnp.maximum(sigma**2 - variance, 0.0))
        return alpha * denoised.x0 + kept * denoised.eps + jnp.sqrt(variance) * noise("step"), state

    return Solver(stateless, step)


@register("solver", "euler")
def euler() -> Solver:
    """Step by Euler's method on the probability-flow ODE in sigma / alpha.

    In these coordinates it is DDIM at eta = 0, and on the straight line it is x + (s - t)(eps - x0), the flow's Euler.

    Source: Karras et al. 2022, section 3 (arXiv 2206.00364).
    """
    return ddim(0.0)


@register("solver", "euler_ancestral")
def euler_ancestral(eta: float = 1.0) -> Solver:
    """Take Euler's step to a lower level sigma / alpha, and add noise from there up to the level asked for.

    The levels are down^2 + up^2 = level_s^2 with up = eta level_s sqrt(1 - level_s^2 / level_t^2), and the step to `down`
    is x0 + down * eps: DDIM's rule, whose eta it is. At eta = 1 it is `ddpm("fixed_small")`.

    Args:
      eta: in [0, 1], the noise added, as a share of the posterior's standard deviation.

    Source: Song et al. 2021, equation 12 (arXiv 2010.02502), in the coordinates of Karras et al. 2022 (arXiv 2206.00364).
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"solver 'euler_ancestral': eta must lie in [0, 1], got {eta}")
    return ddim(eta)
