"""Exponential moving averages of the parameters, usable from the first step on."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import build, register


class Ema(Protocol):
    """A profile of weights over past parameters."""

    label: str

    def decay(self, step: jax.Array) -> jax.Array:
        """The share of the old average kept at the step-th update, counted from 1."""


@register("ema", "constant")
@dataclasses.dataclass(frozen=True)
class Constant:
    """decay, or (1 + step) / (10 + step) while that is smaller.

    Without the warm-up an average with decay 0.9999 still is mostly the random initial network after 5,000 steps, and
    its samples are noise; with it the average spans about the last ninth of the steps taken, at any step.
    """

    decay_rate: float
    warmup: bool = True

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema 'constant': decay must lie in [0, 1), got {decay}")
        object.__setattr__(self, "decay_rate", decay)
        object.__setattr__(self, "warmup", warmup)

    @property
    def label(self) -> str:
        return f"constant_{self.decay_rate:g}"

    def decay(self, step: jax.Array) -> jax.Array:
        if not self.warmup:
            return jnp.float32(self.decay_rate)
        return jnp.minimum(self.decay_rate, (1 + step) / (10 + step)).astype(jnp.float32)


def power_exponent(sigma_rel: float) -> float:
    """The exponent g of the power profile t^g whose relative standard deviation is sigma_rel.

    The largest real root of g^3 + 7 g^2 + (16 - sigma_rel^-2) g + (12 - sigma_rel^-2) = 0
    (Karras et al. 2024, section 3.1, arXiv 2312.02696).

    >>> round(power_exponent(0.05), 4)
    16.9722
    """
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


@register("ema", "power")
@dataclasses.dataclass(frozen=True)
class Power:
    """Weights proportional to (step / last step)^g: the average always spans the same share of training.

    Args:
      sigma_rel: the width of the profile relative to the training so far, such as 0.05 or 0.10.

    Source: Karras et al. 2024, section 3.1 (arXiv 2312.02696).
    """

    sigma_rel: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel < 0.28:
            raise ConfigError(f"ema 'power': sigma_rel must lie in (0, 0.28), got {self.sigma_rel}")

    @property
    def label(self) -> str:
        return f"power_{self.sigma_rel:g}"

    def decay(self, step: jax.Array) -> jax.Array:
        return ((1 - 1 / step.astype(jnp.float32)) ** (power_exponent(self.sigma_rel) + 1)).astype(jnp.float32)


def from_config(config: Any) -> tuple[Ema, ...]:
    """The averages of a run's `training.ema` list; the first serves sampling.

    Raises:
      ConfigError: unknown names or fields, or two averages alike.
    """
    averages = tuple(build("ema", entry) for entry in config)
    labels = [average.label for average in averages]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"training.ema names the same average twice: {labels}")
    return averages


def update(average: Ema, old: Any, new: Any, step: jax.Array) -> Any:
    """decay * old + (1 - decay) * new, leaf by leaf, float32."""
    decay = average.decay(step)
    return jax.tree.map(lambda a, b: (b + decay * (a - b)).astype(a.dtype), old, new)
