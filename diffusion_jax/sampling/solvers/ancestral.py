"""Ancestral sampling: draws of the posterior q(x_s | x_t, x0) at the predicted x0."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError, nearest
from diffusion_jax.process.process import VARIANCES, Process
from diffusion_jax.process.types import Corruption, Data, Denoised, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver, serves_gaussian, stateless


@register("solver", "ddpm")
def ddpm(variance: str | float | None = None) -> Solver:
    """Ancestral sampling: a draw of q(x_s | x_t, x0) at the predicted x0, for any pair of times; no noise at s = 0.

    Args:
      variance: replaces the process's own: "fixed_small" or "fixed_large" (or the learned one it was trained with), or
        a number in [0, 1] that interpolates the logarithms from the first to the second (Ho & Salimans 2022 use 0.3
        for 64-pixel images, arXiv 2207.12598). On few steps "fixed_large" is DDIM's "sigma-hat".

    Source: Ho et al. 2020, algorithm 2 (arXiv 2006.11239).
    """
    if isinstance(variance, str) and variance not in VARIANCES:
        hint = nearest(variance, VARIANCES)
        raise ConfigError(f"solver 'ddpm': unknown variance {variance!r}{hint} (known: {', '.join(VARIANCES)})")
    if isinstance(variance, int | float) and not 0 <= variance <= 1:
        raise ConfigError(f"solver 'ddpm': a variance that interpolates must lie in [0, 1], got {variance}")

    def check(process: Corruption, times: np.ndarray) -> None:
        serves_gaussian(process, times)
        if isinstance(variance, str) and variance.startswith("learned") and variance != process.variance:
            raise ConfigError(
                f"solver 'ddpm': the variance {variance!r} needs the network's variance channels, but the process was trained "
                f"with {process.variance!r}; use 'fixed_small' or 'fixed_large', or leave it out"
            )

    def log_variance(process: Process, denoised: Denoised, s: jax.Array, t: jax.Array) -> jax.Array:
        if variance is None or isinstance(variance, str):
            return process.reverse_log_variance(denoised, s, t, variance)
        small, large = (process.reverse_log_variance(denoised, s, t, mode) for mode in ("fixed_small", "fixed_large"))
        return (1 - variance) * small + variance * large

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, denoised = denoiser.process, denoiser(x, t)
        mean = process.reverse_mean(denoised, x, s, t)
        spread = log_variance(process, denoised, s, t)
        if denoised.classifier_gradient is not None:
            mean += _moved(process, denoised.classifier_gradient, jnp.exp(spread), s, t)
        scale = jnp.where(s > 0, jnp.exp(0.5 * spread), 0.0)
        return mean + scale * noise("step"), state

    return Solver(stateless, step, check=check)


def _moved(process: Process, gradient: Data, variance: jax.Array, s: jax.Array, t: jax.Array) -> Data:
    """Return what the mean lacks to have been moved by variance * gradient, as the x0 it was made of has been already.

    Source: Dhariwal & Nichol 2021, algorithm 1 (arXiv 2105.05233).
    """
    (alpha_s, _), (alpha_t, sigma_t) = process.alpha_sigma(s), process.alpha_sigma(t)
    forward = -jnp.expm1(process.log_snr(t) - process.log_snr(s)) * sigma_t**2
    return (variance - alpha_s / jnp.where(alpha_t > 0, alpha_t, 1.0) * forward) * gradient
