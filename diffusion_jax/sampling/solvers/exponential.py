"""Exponential integration in half-log-SNR l = ln(alpha / sigma): the linear part of the flow and of the SDE is exact.

Over a step from t to s with h = l_s - l_t, and x0 held constant,

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) x0 + sigma_s sqrt(1 - e^(-2 eta h)) z.

eta = 0 is the probability-flow ODE (and DDIM's step), eta = 1 the reverse SDE. h is infinite from zero SNR and to s = 0,
where the step is still finite.

Source: Lu et al. 2022, sections 4 and 5 (arXiv 2211.01095).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data


def span(process: Process, t: jax.Array, s: jax.Array) -> jax.Array:
    """h = l_s - l_t > 0, a scalar."""
    return 0.5 * (process.log_snr(s) - process.log_snr(t))


def advance(process: Process, x: Data, x0: Data, t: jax.Array, s: jax.Array, eta: float = 0.0) -> Data:
    """The mean of x_s with x0 held constant."""
    alpha, sigma = process.alpha_sigma(s)
    h = span(process, t, s)
    kept = sigma / process.alpha_sigma(t)[1]
    kept = kept * jnp.exp(-eta * h) if eta else kept
    return kept * x - alpha * jnp.expm1(-(1 + eta) * h) * x0


def deviation(process: Process, t: jax.Array, s: jax.Array, eta: float) -> jax.Array:
    """The standard deviation of x_s about that mean, for eta > 0."""
    return process.alpha_sigma(s)[1] * jnp.sqrt(-jnp.expm1(-2 * eta * span(process, t, s)))


def phi(k: int, z: jax.Array) -> jax.Array:
    """phi_0 = e^z, phi_k(z) = (phi_{k-1}(z) - 1 / (k - 1)!) / z, with phi_k(0) = 1 / k!; z is finite."""
    small = jnp.abs(z) < 1
    safe = jnp.where(small, 1.0, z)
    value = jnp.expm1(safe) / safe  # phi_1
    for j in range(2, k + 1):
        value = (value - 1 / _factorial(j - 1)) / safe
    # The recursion loses digits near 0, where the series has them after a few terms.
    series = sum(z**n / _factorial(n + k) for n in range(12))
    return jnp.where(small, series, value)


def _factorial(n: int) -> float:
    return float(np.prod(np.arange(1, n + 1, dtype=np.float64)))
