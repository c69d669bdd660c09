"""Runge-Kutta methods on the probability-flow ODE: Heun's with EDM's churn, and a family in any schedule's own time."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.schedules import Schedule
from diffusion_jax.process.types import Corruption, Data, Denoised, Denoiser, PerExample, expand
from diffusion_jax.registry import build, part
from diffusion_jax.sampling.solvers.base import Noise, Solver, needs_signal, ode_step, serves_gaussian
from diffusion_jax.sampling.solvers.churn import Churn
from diffusion_jax.values import NonNegative, Range


@part("solver", "heun")
def heun(
    s_churn: NonNegative = 0.0,
    s_min: NonNegative = 0.0,
    s_max: NonNegative | None = None,
    s_noise: NonNegative = 1.0,
    space: Literal["x", "sigma"] = "x",
) -> Solver:
    """Step by Heun's method of order 2, optionally with churn: noise added before each step. 2N - 1 evaluations.

    Args:
      s_churn: how much noise over the whole run; each of N steps raises sigma / alpha by min(s_churn / N, sqrt(2) - 1).
      s_min, s_max: the levels sigma / alpha between which noise is added; None is no bound. A level is not raised above the
        schedule's largest, so at t = 1 none is added.
      s_noise: the standard deviation of the added noise, about 1.
      space: where alpha is not 1, the coordinates of the corrected step. "x": bears a start at little or no signal, and
        is the flow's Heun on the straight line. "sigma": x / alpha against sigma / alpha, which is exactly EDM's sampler
        on any network; it needs signal at the first time. Both are of order 2, and the same where alpha = 1.

    Source: Karras et al. 2022, algorithms 1 and 2 (arXiv 2206.00364).
    """
    churn = Churn("heun", s_churn, s_min, s_max, s_noise)

    def step(denoiser: Denoiser, x: Data, raise_by: Any, t: jax.Array, s: jax.Array, noise: Noise):
        process = denoiser.process
        x, t = churn(process, x, t, raise_by, noise)
        first = denoiser(x, t)
        predicted = ode_step(process, first, s)

        def corrected() -> Data:
            return predicted + _correction(process, first, denoiser(predicted, s), t, s, space)

        # A condition, not a selection: the last step costs one evaluation.
        return jax.lax.cond(s > 0, corrected, lambda: predicted), raise_by

    check = needs_signal("'heun' in the space 'sigma'") if space == "sigma" else serves_gaussian
    return Solver(churn.init, step, evaluations=2, check=check)


def _correction(process: Process, first: Denoised, second: Denoised, t: jax.Array, s: jax.Array, space: str) -> Data:
    """Half of alpha times the step in sigma / alpha times the change of slope.

    With the alpha of s it is Karras' correction of x / alpha. With that of t, the same to second order and where alpha
    is 1, it is Heun's in x and t on the straight line, finite from zero SNR and small from a low one.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    scale = 1.0 if space == "x" else alpha_s / alpha_t
    return 0.5 * scale * (alpha_t / alpha_s * sigma_s - sigma_t) * (second.eps - first.eps)


_TOLERANCE = 1e-4  # of log-SNRs that went through an inverse and back


def _scales(schedule: Schedule, scaled: bool, tau: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(s, s * sigma) at the ODE's time."""
    alpha, sigma = schedule.alpha_sigma(tau)
    return (alpha, sigma) if scaled else (jnp.ones_like(alpha), sigma / alpha)


@part("solver", "in_time")
def in_time(
    schedule: Any = None,
    scaled: bool = True,
    order: Annotated[int, Range(1, 2)] = 1,
    alpha: Annotated[float, Range(0, 1, open_low=True)] = 1.0,
    s_churn: NonNegative = 0.0,
    s_min: NonNegative = 0.0,
    s_max: NonNegative | None = None,
    s_noise: NonNegative = 1.0,
) -> Solver:
    """Step along dx/dt = s'(t) x0 + (s(t) sigma(t))' eps, which is equation 4 of the paper, in the time of a schedule.

    With churn it is the paper's general stochastic sampler, with Euler's step or a correction of any `alpha`.

    Args:
      schedule: whose sigma(t) = sigma / alpha and scaling s(t) = alpha the ODE has; the process's own by default. Between
        its ends it must have the grid's levels: one that ends below the first is refused. "vp_sde" and "ve" with order 1
        are the samplers of the score SDEs.
      scaled: False leaves the scaling out, s(t) = 1.
      order: 1 is Euler's method, 2 the family below; the last step is always Euler's. N, or 2N - 1 evaluations.
      alpha: where the second evaluation of order 2 lies: 1 is Heun's method, 1/2 the midpoint rule, 2/3 Ralston's.
      s_churn, s_min, s_max, s_noise: as of `heun`; no level is raised above the schedule's largest.

    Source: Karras et al. 2022, algorithms 2 and 3 and table 1 (arXiv 2206.00364).
    """
    given: Schedule | None = None if schedule is None else build("schedule", schedule)
    churn = Churn("in_time", s_churn, s_min, s_max, s_noise)
    top = math.inf if given is None else float(np.exp(-0.5 * given.log_snr(np.float64(1.0))))

    def check(process: Corruption, times: np.ndarray) -> None:
        needs_signal("'in_time'")(process, times)
        first = process.schedule.log_snr(np.float64(times[0]))
        if given is None or given.log_snr(np.float64(1.0)) <= first:
            return
        # A process of discrete levels begins at the one nearest to the schedule's noisiest, which may lie a little above it.
        reached = process.schedule.log_snr(process.schedule.inverse(given.log_snr(np.float64(1.0))))
        if reached > first + _TOLERANCE:
            raise ConfigError(
                f"solver 'in_time': the schedule {given.name!r} ends at the level {np.exp(-0.5 * reached):g}, below "
                f"{np.exp(-0.5 * first):g}, where the grid starts: use a schedule that reaches it, or a grid of lower levels"
            )

    def step(denoiser: Denoiser, x: Data, raise_by: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process: Process = denoiser.process
        own = given or process.schedule
        x, t = churn(process, x, t, raise_by, noise, top)

        def there(t: jax.Array) -> jax.Array:
            return t if given is None else own.inverse(process.log_snr(t))

        def rescale(x: Data, tau: jax.Array, t: jax.Array, back: bool = False) -> Data:
            ratio = _scales(own, scaled, tau)[0] / process.alpha_sigma(t)[0]
            return x / ratio if back else x * ratio

        def slope(denoised: Denoised, tau: jax.Array) -> Data:
            change = jax.jvp(lambda tau: _scales(own, scaled, tau), (tau,), (jnp.ones_like(tau),))[1]
            return change[0] * denoised.x0 + change[1] * denoised.eps

        start, end = there(t), there(s)
        h, first = end - start, slope(denoiser(x, t), start)
        z = rescale(x, start, t)
        if order == 1:
            return rescale(z + h * first, end, s, back=True), raise_by

        def second() -> Data:
            tau = start + alpha * h
            between = s if alpha == 1 else process.schedule.inverse(own.log_snr(tau))
            x_between = rescale(z + alpha * h * first, tau, between, back=True)
            weight = 1 / (2 * alpha)
            return (1 - weight) * first + weight * slope(denoiser(x_between, between), tau)

        # A condition, not a selection: the last step costs one evaluation.
        return rescale(z + h * jax.lax.cond(s > 0, second, lambda: first), end, s, back=True), raise_by

    return Solver(churn.init, step, evaluations=order, check=check)


# Steps between times of each example's own, which distillation asks of a teacher; a solver walks along one grid --------


def ddim_step(denoise: Denoiser, x_t: Data, t: PerExample, s: PerExample) -> jax.Array:
    """Return x_s by one step of DDIM at eta = 0, which is Euler's in sigma / alpha.

    Args:
      x_t: [B, ...] at times t [B].
      s: [B], s < t; where s is 0 the result is the predicted x0.

    Source: Song et al. 2021, equation 13 (arXiv 2010.02502).
    """
    return ode_step(denoise.process, denoise(x_t, t), s)


def heun_step(denoise: Denoiser, x_t: Data, t: PerExample, s: PerExample) -> jax.Array:
    """Return x_s by one step of Heun's method in sigma / alpha, of order 2: two evaluations.

    Args:
      x_t: [B, ...] at times t [B].
      s: [B], 0 < s < t.

    Source: Karras et al. 2022, algorithm 1 (arXiv 2206.00364).
    """
    process = denoise.process
    first = denoise(x_t, t)
    predicted = ode_step(process, first, s)
    second = denoise(predicted, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    # With the alpha of t: the same to second order, and finite from zero SNR.
    half = expand(0.5 * (alpha_t / alpha_s * sigma_s - sigma_t), x_t)
    return predicted + half * (second.eps - first.eps)
