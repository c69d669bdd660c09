"""Churn: noise that a solver of the flow adds before each step, which takes x to a higher level."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data
from diffusion_jax.sampling.solvers.base import Noise, level


@dataclasses.dataclass(frozen=True)
class Churn:
    """Raises x_t to the level (1 + g) sigma / alpha before a step, with g = min(s_churn / N, sqrt(2) - 1) of N steps.

    Args:
      solver: which has it, for messages.
      s_churn: how much noise over the whole run; 0 is none, and draws none.
      s_min, s_max: the levels sigma / alpha between which noise is added; None is no bound.
      s_noise: the standard deviation of the added noise, about 1.

    Raises:
      ConfigError: s_min above s_max.

    Source: Karras et al. 2022, algorithm 2 (arXiv 2206.00364).
    """

    solver: str
    s_churn: float
    s_min: float
    s_max: float | None
    s_noise: float

    def __post_init__(self) -> None:
        if self.s_max is not None and self.s_min > self.s_max:
            raise ConfigError(f"solver {self.solver!r}: needs s_min <= s_max, got {self.s_min} and {self.s_max}")

    def init(self, x: jax.Array, num_steps: int) -> jax.Array:
        """Return g, which is what a solver remembers: a scalar of x's dtype."""
        return jnp.asarray(min(self.s_churn / num_steps, math.sqrt(2) - 1), x.dtype)

    def __call__(
        self, process: Process, x: Data, t: jax.Array, raise_by: Any, noise: Noise, top: float = math.inf
    ) -> tuple[Data, jax.Array]:
        """Return x at a higher level, and its time.

        Args:
          raise_by: g.
          top: no level is raised above it, nor above the schedule's largest, so at t = 1 none is.
        """
        if not self.s_churn:
            return x, t
        here = level(process, t)
        within = (here >= self.s_min) & (here <= (math.inf if self.s_max is None else self.s_max)) & jnp.isfinite(here)
        safe = jnp.where(within, here, 1.0)
        reached = jnp.maximum(jnp.minimum(safe * (1 + raise_by), top), safe)
        raised = jnp.where(within, process.schedule.inverse(-2 * jnp.log(reached)), t)
        alpha, alpha_raised = process.alpha_sigma(t)[0], process.alpha_sigma(raised)[0]
        # The schedule may end below the raised level: add just the noise that reaches the time found.
        extra = jnp.where(within, jnp.sqrt(jnp.maximum(level(process, raised) ** 2 - safe**2, 0.0)), 0.0)
        ratio = jnp.where(within, alpha_raised / jnp.where(within, alpha, 1.0), 1.0)
        return ratio * x + alpha_raised * extra * self.s_noise * noise("churn"), raised
