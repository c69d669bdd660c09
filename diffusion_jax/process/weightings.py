"""Loss weightings over noise levels, all as a weight w_x on the squared error of x0.

The loss is computed in the network's own target space, with w_x / k^2 where (target error) = k * (x0 error): the same
objective, well conditioned. A weighting is a function (process, t [B]) -> w_x [B], or `simple`, which is weight 1 in
the target's space whatever the target is: SNR for eps, 1 for x0, SNR + 1 for v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import register

if TYPE_CHECKING:
    from diffusion_jax.process.process import Process

Weighting = Callable[["Process", jax.Array], jax.Array]

# Beyond these log-SNRs float32 has no digits left for the loss; weights stay finite.
_LIMIT = 40.0


def _log_snr(process: Process, t: jax.Array) -> jax.Array:
    return jnp.clip(process.log_snr(t), -_LIMIT, _LIMIT)


@register("weighting", "simple")
def simple() -> Weighting:
    """Weight 1 in the target's own space: L_simple (Ho et al. 2020, equation 14, arXiv 2006.11239)."""

    def weight(process: Process, t: jax.Array) -> jax.Array:
        return process.prediction.x0_error_scale(*process.alpha_sigma(t)) ** 2

    return weight


@register("weighting", "none")
def none() -> Weighting:
    """No denoising term: what is left is the variational bound, if `vlb_weight` is set."""
    return lambda process, t: jnp.zeros_like(t)


@register("weighting", "x0")
def x0() -> Weighting:
    """w_x = 1: the plain squared error of x0."""
    return lambda process, t: jnp.ones_like(t)


@register("weighting", "snr")
def snr() -> Weighting:
    """w_x = SNR: the plain squared error of eps."""
    return lambda process, t: jnp.exp(_log_snr(process, t))


@register("weighting", "truncated_snr")
def truncated_snr() -> Weighting:
    """w_x = max(SNR, 1) (Salimans & Ho 2022, section 4, arXiv 2202.00512)."""
    return lambda process, t: jnp.exp(jnp.maximum(_log_snr(process, t), 0.0))


@register("weighting", "min_snr")
def min_snr(gamma: float = 5.0) -> Weighting:
    """w_x = min(SNR, gamma), and 1 at zero SNR (Hang et al. 2023, arXiv 2303.09556)."""
    if gamma <= 0:
        raise ConfigError(f"weighting 'min_snr': gamma must be positive, got {gamma}")

    def weight(process: Process, t: jax.Array) -> jax.Array:
        value = jnp.minimum(jnp.exp(_log_snr(process, t)), gamma)
        return jnp.where(jnp.isneginf(process.log_snr(t)), 1.0, value)

    return weight


@register("weighting", "edm")
def edm(sigma_data: float = 0.5) -> Weighting:
    """w_x = SNR + 1 / sigma_data^2, with SNR = (alpha / sigma)^2 (Karras et al. 2022, table 1, arXiv 2206.00364)."""
    return lambda process, t: jnp.exp(_log_snr(process, t)) + 1 / sigma_data**2


def _density(process: Process, t: jax.Array) -> jax.Array:
    """-d log_snr / dt, by automatic differentiation: [B]."""
    return -jax.vmap(jax.grad(process.schedule.log_snr))(t)


@register("weighting", "elbo")
def elbo() -> Weighting:
    """w_x = -(1/2) dSNR/dt: the continuous-time variational bound in nats (Kingma et al. 2021, arXiv 2107.00630)."""
    return lambda process, t: 0.5 * _density(process, t) * jnp.exp(_log_snr(process, t))


@register("weighting", "sigmoid")
def sigmoid(bias: float = 0.0) -> Weighting:
    """w_x = -(1/2) d log_snr/dt * SNR * sigmoid(bias - log_snr): the bound, reweighted towards noisier levels.

    Source: Kingma & Gao 2023 (arXiv 2303.00848); Hoogeboom et al. 2024, section 3 (arXiv 2410.19324).
    """

    def weight(process: Process, t: jax.Array) -> jax.Array:
        log_snr = _log_snr(process, t)
        return 0.5 * _density(process, t) * jnp.exp(log_snr + jax.nn.log_sigmoid(bias - log_snr))

    return weight
