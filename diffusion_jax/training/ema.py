"""Exponential moving averages of the parameters, usable from the first step on."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import build, register
from diffusion_jax.values import Count, NonNegative, Positive, Probability, Range

Width = Annotated[float, Range(0, 0.28, open_low=True, open_high=True)]


class Ema(Protocol):
    """A profile of weights over past parameters."""

    label: str

    def share(self, step: jax.Array) -> jax.Array:
        """Return the share of the new parameters in the average after the step-th update, counted from 1; float32 scalar."""


@register("ema", "constant")
@dataclasses.dataclass(frozen=True)
class Constant:
    """The old average keeps `decay`, or (1 + step) / (10 + step) while that is smaller.

    Without the warm-up an average with decay 0.9999 still is mostly the random initial network after 5,000 steps, and
    its samples are noise; with it the average spans about the last ninth of the steps taken, at any step.

    Source: the constant decay of Ho et al. 2020 (arXiv 2006.11239, appendix B); the warm-up is that of TensorFlow's
    ExponentialMovingAverage with num_updates.
    """

    decay: Probability = 0.9999
    warmup: bool = True

    @property
    def label(self) -> str:
        return f"constant_{self.decay}"

    def share(self, step: jax.Array) -> jax.Array:
        last = jnp.float32(1 - self.decay)
        return jnp.maximum(last, 9.0 / (10.0 + step.astype(jnp.float32))) if self.warmup else last


@register("ema", "half_life")
@dataclasses.dataclass(frozen=True)
class HalfLife:
    """A constant decay given by the number of images that halve a share, ramped up from the start of training.

    Each update of `batch_size` images keeps 0.5^(batch_size / h) of the old average, with h the smaller of `images` and
    `ramp` times the images seen before it: the first average is the parameters themselves.

    Args:
      images: the half-life, 500,000 for EDM's networks, 50,000,000 on ImageNet.
      batch_size: of the run's data; filled in where it is left out.
      ramp: 0 for none.

    Source: Karras et al. 2022, appendix F.1 (arXiv 2206.00364).
    """

    images: Positive
    batch_size: Count | None = None
    ramp: NonNegative = 0.05

    @property
    def label(self) -> str:
        return f"half_life_{self.images:g}"

    def share(self, step: jax.Array) -> jax.Array:
        updates = jnp.float32(self.images / self.batch_size)  # in which a share is halved
        if self.ramp:
            updates = jnp.minimum(updates, self.ramp * (step.astype(jnp.float32) - 1))
        return -jnp.expm1(-np.log(2.0) / jnp.maximum(updates, 1e-8)).astype(jnp.float32)


def power_exponent(sigma_rel: float) -> float:
    """Return the exponent g of the power profile t^g whose relative standard deviation is sigma_rel.

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

    sigma_rel: Width = 0.05

    @property
    def label(self) -> str:
        return f"power_{self.sigma_rel}"

    def share(self, step: jax.Array) -> jax.Array:
        # 1 - (1 - 1/step)^(g + 1) without the cancellation that late steps would suffer in float32.
        return -jnp.expm1((power_exponent(self.sigma_rel) + 1) * jnp.log1p(-1 / step.astype(jnp.float32)))


def from_config(config: Any, batch_size: int | None = None) -> tuple[Ema, ...]:
    """Build the averages of a run's `training.ema` list; the first serves sampling.

    Args:
      batch_size: of the run's data, which averages that count images need; None where only labels are wanted.

    Raises:
      ConfigError: unknown names or fields, two averages alike, or one that says another batch size.
    """
    averages = tuple(build("ema", entry) for entry in config)
    labels = [average.label for average in averages]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"training.ema names the same average twice: {labels}")
    return averages if batch_size is None else tuple(_with_batch(average, batch_size) for average in averages)


def _with_batch(average: Ema, batch_size: int) -> Ema:
    if not isinstance(average, HalfLife) or average.batch_size == batch_size:
        return average
    if average.batch_size is not None:
        raise ConfigError(
            f"training.ema: {average.label} counts images in batches of {average.batch_size}, but data.batch_size is "
            f"{batch_size}: leave batch_size out of the average"
        )
    return dataclasses.replace(average, batch_size=batch_size)


def update(average: Ema, old: Any, new: Any, step: jax.Array) -> Any:
    """Return old + share * (new - old), leaf by leaf, in float32."""
    share = average.share(step)
    return jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), old, new)
