"""Loss weightings over noise levels, all as a weight w_x on the squared error of x0.

The loss is computed in the network's own target space, with w_x / k^2 where (target error) = k * (x0 error): the same
objective, well conditioned. A weighting is a function (process, t [B]) -> w_x [B], or `simple`, which is weight 1 in
the target's space whatever the target is: SNR for eps, 1 for x0, SNR + 1 for v.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.process.process import Process
from diffusion_jax.process.schedules import alpha_sigma_from_log_snr
from diffusion_jax.process.types import PerExample
from diffusion_jax.registry import part
from diffusion_jax.values import Positive

Weighting = Callable[[Process, PerExample], PerExample]

# Weights and error scales see log-SNRs within these limits, so that squares and quotients stay finite in float32.
_LIMIT = 40.0


def _log_snr(process: Process, t: PerExample) -> PerExample:
    return jnp.clip(process.log_snr(t), -_LIMIT, _LIMIT)


def _squared_error_scale(process: Process, t: PerExample) -> PerExample:
    """k^2, with (target error) = k * (x0 error)."""
    alpha, sigma = alpha_sigma_from_log_snr(_log_snr(process, t), process.schedule.family)
    return process.prediction.x0_error_scale(alpha, sigma) ** 2


def in_target_space(weighting: Weighting, process: Process, t: PerExample) -> PerExample:
    """Return w_x / k^2, the weight on the squared error of the network's own target: finite at every t in (0, 1]."""
    return weighting(process, t) / _squared_error_scale(process, t)


@part("weighting", "simple")
def simple() -> Weighting:
    """Weight 1 in the target's own space: L_simple (Ho et al. 2020, equation 14, arXiv 2006.11239)."""
    return _squared_error_scale


def bound_only(process: Process, t: PerExample) -> PerExample:
    """Count no squared error at all: the loss is the variational bound."""
    return jnp.zeros_like(t)


@part("weighting", "vlb")
def vlb() -> Weighting:
    """Train L_vlb: the discrete variational bound alone, in bits per dimension, for means and learned variances.

    Source: Nichol & Dhariwal 2021, sections 3.1 and 3.3, where it is trained with times "importance" (arXiv 2102.09672).
    """
    return bound_only


@part("weighting", "x0")
def x0() -> Weighting:
    """Weigh by w_x = 1: the plain squared error of x0."""
    return lambda process, t: jnp.ones_like(t)


@part("weighting", "snr")
def snr() -> Weighting:
    """Weigh by w_x = SNR: the plain squared error of eps."""
    return lambda process, t: jnp.exp(_log_snr(process, t))


@part("weighting", "truncated_snr")
def truncated_snr() -> Weighting:
    """Weigh by w_x = max(SNR, 1) (Salimans & Ho 2022, section 4, arXiv 2202.00512)."""
    return lambda process, t: jnp.exp(jnp.maximum(_log_snr(process, t), 0.0))


@part("weighting", "min_snr")
def min_snr(gamma: Positive = 5.0) -> Weighting:
    """Weigh by w_x = min(SNR, gamma), and 1 at zero SNR (Hang et al. 2023, arXiv 2303.09556)."""

    def weight(process: Process, t: PerExample) -> PerExample:
        value = jnp.minimum(jnp.exp(_log_snr(process, t)), gamma)
        return jnp.where(jnp.isneginf(process.log_snr(t)), 1.0, value)

    return weight


@part("weighting", "edm")
def edm(sigma_data: Positive = 0.5) -> Weighting:
    """Weigh by w_x = SNR + 1 / sigma_data^2, with SNR = (alpha / sigma)^2 (Karras et al. 2022, table 1, arXiv 2206.00364)."""
    return lambda process, t: jnp.exp(_log_snr(process, t)) + 1 / sigma_data**2


def _snr_slope(process: Process, t: PerExample) -> PerExample:
    """-dSNR/dt, by automatic differentiation; for a chain of T steps, T (SNR_s - SNR_t) with s one step before t.

    Before its first step a chain's SNR is infinite; the log-SNR falls there as it does in the second.
    """
    log_snr = _log_snr(process, t)
    if process.num_steps is None:
        return -jax.vmap(jax.grad(process.schedule.log_snr))(t) * jnp.exp(log_snr)
    step = 1 / process.num_steps
    early = jnp.maximum(t - step, step)
    fall = jnp.minimum(process.drop(early, early + step), _log_snr(process, early) + _LIMIT)
    return process.num_steps * jnp.expm1(fall) * jnp.exp(log_snr)


@part("weighting", "elbo")
def elbo() -> Weighting:
    """Weigh by w_x = -(1/2) dSNR/dt: the variational bound in nats per dimension, as a weighted error.

    In continuous time, or for a chain with the variance "fixed_small": its KL terms, times T.

    Source: Kingma et al. 2021 (arXiv 2107.00630).
    """
    return lambda process, t: 0.5 * _snr_slope(process, t)


@part("weighting", "sigmoid")
def sigmoid(bias: float = 0.0) -> Weighting:
    """Weigh by w_x = -(1/2) dSNR/dt * sigmoid(bias - log_snr): the bound, reweighted towards noisier levels.

    As -dSNR/dt = SNR * (-d log_snr/dt), it is sigmoid(bias - log_snr) on the squared error of eps, per log-SNR.

    Source: Kingma & Gao 2023 (arXiv 2303.00848); Hoogeboom et al. 2024 (arXiv 2410.19324).
    """

    def weight(process: Process, t: PerExample) -> PerExample:
        return 0.5 * _snr_slope(process, t) * jax.nn.sigmoid(bias - _log_snr(process, t))

    return weight
