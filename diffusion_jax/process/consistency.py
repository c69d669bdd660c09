"""Consistency functions f(x_t, t) -> x0, whose values agree along each path of the probability-flow ODE.

The parameterisation with its boundary, how many noise levels there are as training goes on, and the distances between
two values.

Sources: Song et al. 2023 (arXiv 2303.01469); the improved recipe: Song & Dhariwal 2023 (arXiv 2310.14189).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.parameterisations import Edm
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, PerExample
from diffusion_jax.registry import part
from diffusion_jax.values import Count, Positive, Range

# Times carry rounding: a level within this share of sigma_min is sigma_min.
_SNAP = 1e-4


@part("prediction", "consistency")
@dataclasses.dataclass(frozen=True)
class Consistency:
    """EDM preconditioning moved so that f(x, sigma_min) = x exactly, whatever the network says.

    With y = x_t / alpha and s = sigma / alpha, x0 = c_skip * y + c_out * F(c_in * y), where
    c_skip = d^2 / ((s - e)^2 + d^2), c_out = d (s - e) / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2).

    Args:
      sigma_data: d, the standard deviation of the data, about 0.5 for pixels in [-1, 1].
      sigma_min: e, the level at which the function is the identity, as it is at every smaller one.

    Source: Song et al. 2023, appendix C (arXiv 2303.01469).
    """

    sigma_data: Positive = 0.5
    sigma_min: Positive = 0.002

    name = "consistency"
    needs_signal = True

    def _coefficients(self, alpha: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(c_skip, c_out)."""
        level = sigma / alpha
        excess = jnp.where(level <= self.sigma_min * (1 + _SNAP), 0.0, level - self.sigma_min)
        c_skip = self.sigma_data**2 / (excess**2 + self.sigma_data**2)
        return c_skip, self.sigma_data * excess / jnp.hypot(level, self.sigma_data)

    def input_scale(self, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        return Edm(self.sigma_data).input_scale(alpha, sigma)

    def target(self, x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Return what makes f equal to x0; 0 at the boundary, where f is x_t whatever the output."""
        c_skip, c_out = self._coefficients(alpha, sigma)
        inside = c_out > 0
        return jnp.where(inside, x0 - c_skip * (x0 + sigma / alpha * eps), 0.0) / jnp.where(inside, c_out, 1.0)

    def decode(self, output: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        c_skip, c_out = self._coefficients(alpha, sigma)
        x0 = c_skip * (x_t / alpha) + c_out * output
        return x0, (x_t - alpha * x0) / sigma

    def x0_error_scale(self, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """Return a factor that is bounded near the boundary, where no output makes an error."""
        return 1 / jnp.maximum(self._coefficients(alpha, sigma)[1], self.sigma_min * _SNAP)


# How many levels there are -------------------------------------------------------------------------------------------


class Levels(Protocol):
    """N, the number of noise levels, as a function of the training step."""

    start: int
    last: int
    """N at the first step and at the end."""

    def __call__(self, step: Any) -> jax.Array:
        """N at a step, counted from 0; int32."""


def _check_levels(name: str, start: int, end: int) -> None:
    if end < start:
        raise ConfigError(f"levels {name!r}: needs start <= end, got {start} and {end}")


@part("levels", "fixed")
@dataclasses.dataclass(frozen=True)
class Fixed:
    """N = `count` throughout, as in distillation: 18 for CIFAR-10, 40 for 64 and 256 pixels."""

    count: Annotated[int, Range(2)] = 18

    @property
    def start(self) -> int:
        return self.count

    @property
    def last(self) -> int:
        return self.count

    def __call__(self, step: Any) -> jax.Array:
        return jnp.full((), self.count, jnp.int32)


@part("levels", "growing")
@dataclasses.dataclass(frozen=True)
class Growing:
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1, from s0 to s1 + 1.

    Args:
      start, end: s0 and s1.
      steps: K, of the whole training.

    Source: Song et al. 2023, appendix C (arXiv 2303.01469).

    >>> [int(Growing()(k)) for k in (0, 1_000, 100_000, 400_000, 800_000)]
    [2, 6, 54, 107, 151]
    """

    start: Annotated[int, Range(2)] = 2
    end: Count = 150
    steps: Count = 800_000

    def __post_init__(self) -> None:
        _check_levels("growing", self.start, self.end)

    @property
    def last(self) -> int:
        return self.end + 1

    def __call__(self, step: Any) -> jax.Array:
        share = jnp.minimum(jnp.asarray(step, jnp.float32) / self.steps, 1.0)
        root = jnp.sqrt(share * ((self.end + 1) ** 2 - self.start**2) + self.start**2)
        return jnp.ceil(root - 1).astype(jnp.int32) + 1


@part("levels", "doubling")
@dataclasses.dataclass(frozen=True)
class Doubling:
    """N(k) = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2(s1 / s0) + 1)): from s0 + 1 to s1 + 1, doubling.

    Source: Song & Dhariwal 2023, section 3.4 (arXiv 2310.14189).

    >>> [int(Doubling(steps=80)(k)) for k in (0, 9, 10, 20, 79)]
    [11, 11, 21, 41, 1281]
    """

    start: Annotated[int, Range(2)] = 10
    end: Count = 1280
    steps: Count = 400_000

    def __post_init__(self) -> None:
        _check_levels("doubling", self.start, self.end)

    @property
    def last(self) -> int:
        return self.end + 1

    def __call__(self, step: Any) -> jax.Array:
        each = max(int(self.steps / (math.log2(self.end / self.start) + 1)), 1)
        doublings = jnp.minimum(jnp.asarray(step) // each, math.ceil(math.log2(self.end / self.start)))
        return jnp.minimum(self.start * 2**doublings, self.end).astype(jnp.int32) + 1


def target_decay(initial: float, levels: Any, step: Any) -> jax.Array:
    """Return mu(k) = exp(s0 ln(mu0) / N(k)): how much the target network keeps of itself; mu0 where N is fixed.

    Args:
      initial: mu0 in [0, 1).
    """
    return jnp.asarray(initial, jnp.float32) ** (levels.start / levels(step))


@dataclasses.dataclass(frozen=True)
class Ladder:
    """N levels sigma / alpha from `low` to `high`, evenly spaced in their 1/rho power; N may be traced.

    Source: Karras et al. 2022, equation 5 (arXiv 2206.00364), from data to noise.
    """

    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high or self.rho <= 0:
            raise ConfigError(f"noise levels: needs 0 < low < high and rho > 0, got {self.low}, {self.high} and {self.rho}")

    def _ends(self) -> tuple[float, float]:
        return self.low ** (1 / self.rho), self.high ** (1 / self.rho)

    def level(self, index: Any, count: Any) -> jax.Array:
        """Return the level of index 0 (`low`) to count - 1 (`high`), shaped like index."""
        first, last = self._ends()
        return (first + index / (count - 1) * (last - first)) ** self.rho

    def below(self, level: Any, count: Any) -> jax.Array:
        """Return the index in 0..count-2 of the nearest level at or below; int32."""
        first, last = self._ends()
        place = (level ** (1 / self.rho) - first) / (last - first) * (count - 1)
        return jnp.clip(jnp.floor(place).astype(jnp.int32), 0, count - 2)


Draw = Callable[[jax.Array, int, Ladder, Any], jax.Array]
"""(key, how many, ladder, N) -> the lower index of each pair of neighbouring levels, int32 in 0..N-2."""


@part("pairs", "uniform")
def uniform_pairs() -> Draw:
    """Draw every pair of neighbouring levels alike (Song et al. 2023, algorithms 2 and 3, arXiv 2303.01469)."""
    return lambda key, count, ladder, levels: jax.random.randint(key, (count,), 0, levels - 1)


@part("pairs", "log_normal")
def log_normal_pairs(mean: float = -1.1, std: Positive = 2.0) -> Draw:
    """Draw pairs by the mass that ln(level) ~ normal(mean, std) has between their levels.

    Source: Song & Dhariwal 2023, section 3.5 (arXiv 2310.14189).
    """

    def draw(key: jax.Array, count: int, ladder: Ladder, levels: Any) -> jax.Array:
        # A truncated normal falls between two levels with the mass that it has there.
        low, high = ((math.log(end) - mean) / std for end in (ladder.low, ladder.high))
        return ladder.below(jnp.exp(mean + std * jax.random.truncated_normal(key, low, high, (count,))), levels)

    return draw


def time_of(process: Process, level: Any) -> PerExample:
    """Return the time at which sigma / alpha is `level`."""
    return process.schedule.inverse(-2 * jnp.log(level))


# Distances ------------------------------------------------------------------------------------------------------------


def _pseudo_huber(difference: jax.Array) -> PerExample:
    """sqrt(||d||^2 + c^2) - c with c = 0.00054 sqrt(dimensions) (Song & Dhariwal 2023, section 3.3)."""
    flat = difference.reshape(difference.shape[0], -1)
    c = 0.00054 * math.sqrt(flat.shape[1])
    return jnp.sqrt((flat**2).sum(-1) + c**2) - c


METRICS: dict[str, Callable[[Data], PerExample]] = {
    "l2": lambda difference: (difference**2).reshape(difference.shape[0], -1).mean(-1),
    "l1": lambda difference: jnp.abs(difference).reshape(difference.shape[0], -1).mean(-1),
    "pseudo_huber": _pseudo_huber,
}
"""difference [B, ...] -> distance [B]; l2 (squared) and l1 are means over the positions."""
