"""Solvers: pairs (init, step) that walk x from time t to an earlier time s with a `Denoiser`.

All are written in (alpha, sigma) and log-SNR, so each serves every family of processes. The levels sigma / alpha are
the time of the probability-flow ODE, d(x / alpha) = eps d(sigma / alpha).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError, nearest
from diffusion_jax.process.process import VARIANCES, Process
from diffusion_jax.process.types import Data, Denoised, Denoiser
from diffusion_jax.registry import register

Noise = Callable[[str], jax.Array]
"""name -> standard normal noise shaped like x, of this step; a name is used once a step."""


class Solver(NamedTuple):
    """A sampler's rule.

    Attributes:
      init: (x [B, ...], number of steps) -> the solver's state, a pytree.
      step: (denoiser, x at t, state, t, s, noise) -> (x at s, state); t and s are float32 scalars, s < t, and s = 0
        at the last step, which returns clean data.
      evaluations: network evaluations a step (Heun saves one at the last).
    """

    init: Callable[[jax.Array, int], Any]
    step: Callable[..., tuple[jax.Array, Any]]
    evaluations: int = 1


def _stateless(x: jax.Array, num_steps: int) -> tuple[()]:
    return ()


def _level(process: Process, t: jax.Array) -> jax.Array:
    """sigma / alpha at a scalar time; infinite at zero SNR."""
    return jnp.exp(-0.5 * process.log_snr(t))


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

    def log_variance(process: Process, denoised: Denoised, s: jax.Array, t: jax.Array) -> jax.Array:
        if variance is None or isinstance(variance, str):
            return process.reverse_log_variance(denoised, s, t, variance)
        small, large = (process.reverse_log_variance(denoised, s, t, mode) for mode in ("fixed_small", "fixed_large"))
        return (1 - variance) * small + variance * large

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, denoised = denoiser.process, denoiser(x, t)
        mean, _ = process.posterior(denoised.x0, x, s, t)
        scale = jnp.where(s > 0, jnp.exp(0.5 * log_variance(process, denoised, s, t)), 0.0)
        return mean + scale * noise("step"), state

    return Solver(_stateless, step)


def _ode_step(process: Process, denoised: Denoised, s: jax.Array) -> Data:
    """x_s = alpha_s x0 + sigma_s eps: an Euler step of the probability-flow ODE."""
    alpha, sigma = process.alpha_sigma(s)
    return alpha * denoised.x0 + sigma * denoised.eps


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
            return _ode_step(process, denoised, s), state
        alpha, sigma = process.alpha_sigma(s)
        variance = eta**2 * -jnp.expm1(process.log_snr(t) - process.log_snr(s)) * sigma**2
        kept = jnp.sqrt(jnp.maximum(sigma**2 - variance, 0.0))
        return alpha * denoised.x0 + kept * denoised.eps + jnp.sqrt(variance) * noise("step"), state

    return Solver(_stateless, step)


@register("solver", "euler")
def euler() -> Solver:
    """Euler's method on the probability-flow ODE in sigma / alpha.

    In these coordinates it is DDIM at eta = 0, and on the straight line it is x + (s - t)(eps - x0), the flow's Euler.

    Source: Karras et al. 2022, section 3 (arXiv 2206.00364).
    """
    return ddim(0.0)


@register("solver", "heun")
def heun(s_churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0) -> Solver:
    """Heun's method of order 2, optionally with churn: noise added before each step. 2N - 1 evaluations.

    Args:
      s_churn: how much noise over the whole run; each of N steps raises sigma / alpha by min(s_churn / N, sqrt(2) - 1).
      s_min, s_max: the levels sigma / alpha between which noise is added. A level is not raised above the schedule's
        largest, so at t = 1 none is added.
      s_noise: the standard deviation of the added noise, about 1.

    Source: Karras et al. 2022, algorithms 1 and 2 (arXiv 2206.00364).
    """
    if s_churn < 0 or s_min > s_max:
        raise ConfigError(
            f"solver 'heun': needs s_churn >= 0 and s_min <= s_max, got s_churn={s_churn}, s_min={s_min}, s_max={s_max}"
        )

    def init(x: jax.Array, num_steps: int) -> jax.Array:
        return jnp.asarray(min(s_churn / num_steps, math.sqrt(2) - 1), x.dtype)

    def churn(process: Process, x: Data, t: jax.Array, raise_by: jax.Array, noise: Noise) -> tuple[Data, jax.Array]:
        level = _level(process, t)
        within = (level >= s_min) & (level <= s_max) & jnp.isfinite(level)
        safe = jnp.where(within, level, 1.0)
        raised = jnp.where(within, process.schedule.inverse(-2 * jnp.log(safe * (1 + raise_by))), t)
        alpha, alpha_raised = process.alpha_sigma(t)[0], process.alpha_sigma(raised)[0]
        # The schedule may end below the raised level: add just the noise that reaches the time found.
        extra = jnp.where(within, jnp.sqrt(jnp.maximum(_level(process, raised) ** 2 - safe**2, 0.0)), 0.0)
        ratio = jnp.where(within, alpha_raised / jnp.where(within, alpha, 1.0), 1.0)
        return ratio * x + alpha_raised * extra * s_noise * noise("churn"), raised

    def step(denoiser: Denoiser, x: Data, raise_by: jax.Array, t: jax.Array, s: jax.Array, noise: Noise):
        process = denoiser.process
        if s_churn:
            x, t = churn(process, x, t, raise_by, noise)
        first = denoiser(x, t)
        predicted = _ode_step(process, first, s)

        def corrected() -> Data:
            return predicted + _heun_correction(process, first, denoiser(predicted, s), t, s)

        # A condition, not a selection: the last step costs one evaluation.
        return jax.lax.cond(s > 0, corrected, lambda: predicted), raise_by

    return Solver(init, step, evaluations=2)


def _heun_correction(process: Process, first: Denoised, second: Denoised, t: jax.Array, s: jax.Array) -> Data:
    """Half of alpha times the step in sigma / alpha times the change of slope, with the alpha of t.

    It is Karras' correction where alpha = 1, and Heun's in x and t on the straight line. With the alpha of s instead,
    the same to second order, it would not be finite from zero SNR, nor small from a low one.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    return 0.5 * (alpha_t / alpha_s * sigma_s - sigma_t) * (second.eps - first.eps)


@register("solver", "dpmpp_2m")
def dpmpp_2m(variant: str = "midpoint") -> Solver:
    """DPM-Solver++(2M): order 2 with one evaluation a step; first order at the first step and at the step to 0.

    Args:
      variant: how the slope of x0 in half-log-SNR enters: "midpoint", the paper's algorithm 2, or "taylor".

    Source: Lu et al. 2022 (arXiv 2211.01095).
    """
    if variant not in ("midpoint", "taylor"):
        raise ConfigError(f"solver 'dpmpp_2m': unknown variant {variant!r} (known: midpoint, taylor)")

    def init(x: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(x), jnp.zeros((), x.dtype)  # the previous x0; the previous step in half-log-SNR, 0: none

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, (previous, last_h) = denoiser.process, state
        x0 = denoiser(x, t).x0
        alpha, sigma = process.alpha_sigma(s)
        h = 0.5 * (process.log_snr(s) - process.log_snr(t))
        second_order = (last_h > 0) & (s > 0)  # from zero SNR last_h is infinite, and the slope 0
        safe_h = jnp.where(second_order, h, 1.0)
        slope = jnp.where(second_order, safe_h / jnp.where(second_order, last_h, 1.0), 0.0) * (x0 - previous)
        if variant == "midpoint":
            correction = -0.5 * alpha * jnp.expm1(-h) * slope
        else:
            correction = alpha * (jnp.expm1(-safe_h) / safe_h + 1) * slope
        x = sigma / process.alpha_sigma(t)[1] * x - alpha * jnp.expm1(-h) * x0 + correction
        return x, (x0, h.astype(x.dtype))

    return Solver(init, step)


@register("solver", "ddim_inversion")
def ddim_inversion() -> Solver:
    """The DDIM step run from data towards noise; use `invert`, which runs the grid the other way.

    Source: Song et al. 2021, section 4.3 (arXiv 2010.02502).
    """
    return ddim(0.0)
