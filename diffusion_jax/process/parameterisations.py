"""What a network is asked to predict, and how its output becomes (x0, eps).

With x_t = alpha * x0 + sigma * eps, each parameterisation is a few lines: the scale of the network's input, the target,
the decoding into (x0, eps), and the factor k with (target error) = k * (x0 error). Everything else follows from the
pair (x0, eps), so n parameterisations need n converters.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.schedules import Schedule
from diffusion_jax.registry import part
from diffusion_jax.values import Positive

Pair = tuple[jax.Array, jax.Array]


class Parameterisation(Protocol):
    """The contract; alpha and sigma broadcast against x."""

    name: str
    needs_signal: bool
    """Whether decoding divides by alpha, so that zero terminal SNR is out of reach."""

    def input_scale(self, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Return the factor on x_t before it enters the network."""

    def target(self, x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Return what the network should output."""

    def decode(self, output: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> Pair:
        """Return (x0, eps) from the network's output."""

    def x0_error_scale(self, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Return k >= 0 with |target - output| = k * |x0 - predicted x0|, at fixed x_t."""


class _Unscaled:
    """Networks that are fed x_t as it is."""

    needs_signal = False

    def input_scale(self, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        return jnp.ones_like(sigma)


@part("prediction", "eps")
@dataclasses.dataclass(frozen=True)
class Eps(_Unscaled):
    """Predict the noise (Ho et al. 2020, arXiv 2006.11239)."""

    name = "eps"
    needs_signal = True

    def target(self, x0, eps, alpha, sigma):
        return eps

    def decode(self, output, x_t, alpha, sigma):
        return (x_t - sigma * output) / alpha, output

    def x0_error_scale(self, alpha, sigma):
        return alpha / sigma


@part("prediction", "x0")
@dataclasses.dataclass(frozen=True)
class X0(_Unscaled):
    """Predict the clean data."""

    name = "x0"

    def target(self, x0, eps, alpha, sigma):
        return x0

    def decode(self, output, x_t, alpha, sigma):
        return output, (x_t - alpha * output) / sigma

    def x0_error_scale(self, alpha, sigma):
        return jnp.ones_like(sigma)


@part("prediction", "v")
@dataclasses.dataclass(frozen=True)
class V(_Unscaled):
    """Predict v = alpha * eps - sigma * x0 (Salimans & Ho 2022, arXiv 2202.00512)."""

    name = "v"

    def target(self, x0, eps, alpha, sigma):
        return alpha * eps - sigma * x0

    def decode(self, output, x_t, alpha, sigma):
        square = alpha**2 + sigma**2  # 1 where variance is preserved
        return (alpha * x_t - sigma * output) / square, (sigma * x_t + alpha * output) / square

    def x0_error_scale(self, alpha, sigma):
        return (alpha**2 + sigma**2) / sigma


@part("prediction", "score")
@dataclasses.dataclass(frozen=True)
class Score(_Unscaled):
    """Predict the score, grad log p(x_t) = -eps / sigma (Song et al. 2021, arXiv 2011.13456)."""

    name = "score"
    needs_signal = True

    def target(self, x0, eps, alpha, sigma):
        return -eps / sigma

    def decode(self, output, x_t, alpha, sigma):
        eps = -sigma * output
        return (x_t - sigma * eps) / alpha, eps

    def x0_error_scale(self, alpha, sigma):
        return alpha / sigma**2


@part("prediction", "velocity")
@dataclasses.dataclass(frozen=True)
class Velocity(_Unscaled):
    """Predict eps - x0, the velocity d x_t / dt of the straight line (Lipman et al. 2023, arXiv 2210.02747).

    Time runs from data to noise; papers that run it the other way predict the negative.
    """

    name = "velocity"

    def target(self, x0, eps, alpha, sigma):
        return eps - x0

    def decode(self, output, x_t, alpha, sigma):
        total = alpha + sigma  # 1 on the straight line
        return (x_t - sigma * output) / total, (x_t + alpha * output) / total

    def x0_error_scale(self, alpha, sigma):
        return (alpha + sigma) / sigma


@part("prediction", "edm")
@dataclasses.dataclass(frozen=True)
class Edm:
    """EDM preconditioning: input, target and output of unit variance at every noise level.

    With y = x_t / alpha and s = sigma / alpha, the network sees c_in * y and D = c_skip * y + c_out * F.

    Args:
      sigma_data: the standard deviation of the data, about 0.5 for pixels in [-1, 1].

    Source: Karras et al. 2022, table 1 (arXiv 2206.00364).
    """

    sigma_data: Positive = 0.5

    name = "edm"
    needs_signal = True

    def _coefficients(self, alpha, sigma):
        level = sigma / alpha
        norm = jnp.hypot(level, self.sigma_data)
        return self.sigma_data**2 / norm**2, level * self.sigma_data / norm, 1 / norm

    def input_scale(self, alpha, sigma):
        return self._coefficients(alpha, sigma)[2] / alpha

    def target(self, x0, eps, alpha, sigma):
        # (x0 - c_skip * y) / c_out with the common factors cancelled: no 0 / 0 as sigma vanishes.
        level = sigma / alpha
        norm = jnp.hypot(level, self.sigma_data)
        return (level * x0 - self.sigma_data**2 * eps) / (self.sigma_data * norm)

    def decode(self, output, x_t, alpha, sigma):
        c_skip, c_out, _ = self._coefficients(alpha, sigma)
        y = x_t / alpha
        x0 = c_skip * y + c_out * output
        # (y - x0) / level, again without the division by a vanishing level
        level = sigma / alpha
        norm = jnp.hypot(level, self.sigma_data)
        return x0, level / norm**2 * y - self.sigma_data / norm * output

    def x0_error_scale(self, alpha, sigma):
        return 1 / self._coefficients(alpha, sigma)[1]


@part("prediction", "mu")
@dataclasses.dataclass(frozen=True)
class Mu(_Unscaled):
    """Predict mu~ = c1 * x0 + c2 * x_t, the mean of the posterior of x one step of the chain earlier.

    With betas, c1 = beta_t sqrt(alpha_bar_s) / (1 - alpha_bar_t) and c2 = sqrt(1 - beta_t) (1 - alpha_bar_s) /
    (1 - alpha_bar_t). Its squared error is the bound's term times twice the posterior's variance. Ancestral steps of the
    whole chain use the prediction as it is; longer ones, and other solvers, use the x0 that it implies.

    Args:
      schedule: the chain; filled in by `Process`.

    Source: Ho et al. 2020, equations 7 and 8 (arXiv 2006.11239).
    """

    schedule: Schedule | None = None

    name = "mu"

    def on(self, schedule: Schedule) -> Mu:
        """Return this parameterisation on a chain.

        Raises:
          ConfigError: a continuous schedule, in which no step is the one before.
        """
        if schedule.num_steps is None:
            raise ConfigError(
                "the prediction 'mu' is of the step before, but the schedule "
                f"{schedule.name!r} is continuous; use a chain such as 'linear' or 'cosine', or the prediction 'eps'"
            )
        return dataclasses.replace(self, schedule=schedule)

    def _weights(self, alpha, sigma):
        """(c1, c2) of the step that has these coefficients, which log-SNR tells since it falls from step to step."""
        steps = self.schedule.num_steps
        index = jnp.round(self.schedule.inverse(2 * (jnp.log(alpha) - jnp.log(sigma))) * steps)
        index = jnp.clip(index, 1, steps)
        t, s = index / steps, (index - 1) / steps
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule.alpha_sigma(t), self.schedule.alpha_sigma(s)
        c1 = -jnp.expm1(-self.schedule.drop(s, t)) * alpha_s
        return c1, alpha_t / alpha_s * (sigma_s / sigma_t) ** 2

    def target(self, x0, eps, alpha, sigma):
        c1, c2 = self._weights(alpha, sigma)
        return c1 * x0 + c2 * (alpha * x0 + sigma * eps)

    def decode(self, output, x_t, alpha, sigma):
        c1, c2 = self._weights(alpha, sigma)
        x0 = (output - c2 * x_t) / c1
        return x0, (x_t - alpha * x0) / sigma

    def x0_error_scale(self, alpha, sigma):
        return self._weights(alpha, sigma)[0]
