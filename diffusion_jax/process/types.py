"""The two types that everything above the mathematics speaks: `Denoised` and `Denoiser`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from diffusion_jax.process.process import Process

Data = Float[Array, "batch *shape"]
"""A batch of images (or any arrays): clean data is in [-1, 1]."""

Time = Float[Array, "batch"] | Float[Array, ""] | float
"""Times in [0, 1]: 0 is data, 1 is noise; one per example, or one for all."""


PerExample = Float[Array, "batch"]
"""One number per example: losses, weights, terms of a bound."""


class Denoised(NamedTuple):
    """What a network's output says about x_t = alpha * x0 + sigma * eps.

    Attributes:
      x0: the predicted clean data, shaped like x_t; not clipped unless a guidance clipped it.
      eps: the predicted noise, consistent with x0 through x_t.
      raw_variance: the network's variance channels, shaped like x_t, where the process learns its reverse variance.
      mean: of x one step of the chain earlier, where that is what the network predicts; None where guidance moved x0.
      tilt: what a classifier added to the score, which x0 and eps already contain: scale * grad log p(label | x_t). Solvers
        that draw from a Gaussian move its mean by it. None where there was no classifier, or other guidance came after it.
    """

    x0: Data
    eps: Data
    raw_variance: Data | None = None
    mean: Data | None = None
    tilt: Data | None = None


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A callable (x_t, t) -> `Denoised`, and the process whose x_t it denoises.

    Solvers and guidance know nothing else: no network, no parameters, no conditioning.
    """

    function: Callable[[Data, Time], Denoised]
    process: Process

    def __call__(self, x_t: Data, t: Time) -> Denoised:
        """Denoise a batch.

        Args:
          x_t: noisy data [B, ...], float32.
          t: times [B], or one time for all, in (0, 1].
        """
        t = jnp.asarray(t, jnp.promote_types(x_t.dtype, jnp.float32))
        return self.function(x_t, jnp.broadcast_to(t, x_t.shape[:1]))

    def replace(self, function: Callable[[Data, Time], Denoised]) -> Denoiser:
        """The same process with another function: how guidance wraps a denoiser."""
        return dataclasses.replace(self, function=function)


def expand(values: Any, x: jax.Array) -> jax.Array:
    """Append axes to per-example values [B] (or a scalar) so that they broadcast against x [B, ...]."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values
