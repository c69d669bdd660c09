"""The contract of a solver, and what all solvers share: levels, Euler's step, what a process must offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process, gaussian
from diffusion_jax.process.types import Corruption, Data, Denoised, expand

Draw = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
"""(key, shape, dtype) -> random numbers, such as `jax.random.normal`."""

Noise = Callable[..., jax.Array]
"""(name, draw=jax.random.normal, shape=that of one sample) -> random numbers of this step, [B, *shape]: by default standard
normal noise shaped like x. A name is used once a step."""

SERVE_ZERO_SNR = (
    "ddpm, ddim, euler, euler_ancestral, heun (space='x'), kdpm2, kdpm2_ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, "
    "dpmpp_sde, dpmpp_3m, unipc, deis, lms, and of few-step networks lcm, tcd, consistency"
)


def serves_gaussian(process: Corruption, times: np.ndarray) -> None:
    """Check nothing but that the process is Gaussian: for solvers that serve every such process and grid."""
    gaussian(process, "this solver", "one of that process's own solvers")


class Solver(NamedTuple):
    """A sampler's rule.

    Attributes:
      init: (x [B, ...], number of steps) -> the solver's state, a pytree.
      step: (denoiser, x at t, state, t, s, noise) -> (x at s, state); t and s are float32 scalars, s < t, and s = 0
        at the last step, which returns clean data.
      evaluations: network evaluations of a step in the middle of a run; docs/sampling.md has those of whole runs.
      check: (process, times float64 [N + 1]) -> None; raises a `ConfigError` that says what serves instead, before any work.
        A solver of another than the Gaussian `Process` checks for its own.
    """

    init: Callable[[jax.Array, int], Any]
    step: Callable[..., tuple[jax.Array, Any]]
    evaluations: int = 1
    check: Callable[[Any, np.ndarray], None] = serves_gaussian


def stateless(x: jax.Array, num_steps: int) -> tuple[()]:
    """Return the state of a solver that remembers nothing."""
    return ()


def level(process: Process, t: jax.Array) -> jax.Array:
    """Return sigma / alpha at a scalar time; infinite at zero SNR."""
    return jnp.exp(-0.5 * process.log_snr(t))


def ode_step(process: Process, denoised: Denoised, s: jax.Array) -> Data:
    """Return x_s = alpha_s x0 + sigma_s eps, an Euler step of the probability-flow ODE; s is one time, or [B]."""
    alpha, sigma = (expand(value, denoised.x0) for value in process.alpha_sigma(s))
    return alpha * denoised.x0 + sigma * denoised.eps


def needs_signal(solver: str) -> Callable[[Process, np.ndarray], None]:
    """Return the check of a solver that divides by alpha at the time it leaves."""

    def check(process: Corruption, times: np.ndarray) -> None:
        serves_gaussian(process, times)
        if not np.isfinite(process.schedule.log_snr(np.float64(times[0]))):
            raise ConfigError(
                f"solver {solver} divides by alpha, which is 0 at t = {times[0]:g} of the schedule {process.schedule.name!r}; "
                f"these solvers start from zero SNR: {SERVE_ZERO_SNR}"
            )

    return check
