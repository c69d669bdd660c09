"""Euler's method, and a family of order 2, on the probability-flow ODE in any schedule's own time and scaling.

The other solvers step in sigma / alpha, which EDM found best. This one steps as the score SDEs were sampled before: the ODE
has the same solution in every time, a solver has not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.schedules import Schedule
from diffusion_jax.process.types import Corruption, Data, Denoised, Denoiser
from diffusion_jax.registry import build, register
from diffusion_jax.sampling.solvers.base import Noise, Solver, needs_signal, stateless

_TOLERANCE = 1e-4  # of log-SNRs that went through an inverse and back


def _scales(schedule: Schedule, scaled: bool, tau: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(s, s * sigma) at the ODE's time."""
    alpha, sigma = schedule.alpha_sigma(tau)
    return (alpha, sigma) if scaled else (jnp.ones_like(alpha), sigma / alpha)


@register("solver", "in_time")
def in_time(schedule: Any = None, scaled: bool = True, order: int = 1, alpha: float = 1.0) -> Solver:
    """A step of dx/dt = s'(t) x0 + (s(t) sigma(t))' eps, which is equation 4 of the paper, in the time of a schedule.

    Args:
      schedule: whose sigma(t) = sigma / alpha and scaling s(t) = alpha the ODE has; the process's own by default. Between
        its ends it must have the grid's levels: one that ends below the first is refused. "vp_sde" and "ve" with order 1
        are the samplers of the score SDEs.
      scaled: False leaves the scaling out, s(t) = 1.
      order: 1 is Euler's method, 2 the family below; the last step is always Euler's. N, or 2N - 1 evaluations.
      alpha: in (0, 1], where the second evaluation of order 2 lies: 1 is Heun's method, 1/2 the midpoint rule, 2/3 Ralston's.

    Source: Karras et al. 2022, algorithm 3 and table 1 (arXiv 2206.00364).
    """
    if order not in (1, 2):
        raise ConfigError(f"solver 'in_time': order must be 1 or 2, got {order}")
    if not 0 < alpha <= 1:
        raise ConfigError(f"solver 'in_time': alpha must lie in (0, 1], got {alpha}")
    given: Schedule | None = None if schedule is None else build("schedule", schedule)

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

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process: Process = denoiser.process
        own = given or process.schedule

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
            return rescale(z + h * first, end, s, back=True), state

        def second() -> Data:
            tau = start + alpha * h
            between = s if alpha == 1 else process.schedule.inverse(own.log_snr(tau))
            x_between = rescale(z + alpha * h * first, tau, between, back=True)
            weight = 1 / (2 * alpha)
            return (1 - weight) * first + weight * slope(denoiser(x_between, between), tau)

        # A condition, not a selection: the last step costs one evaluation.
        return rescale(z + h * jax.lax.cond(s > 0, second, lambda: first), end, s, back=True), state

    return Solver(stateless, step, evaluations=order, check=check)
