"""The types that everything above the mathematics speaks: `Corruption`, `Denoised` and `Denoiser`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

Data = Float[Array, "batch *shape"]
"""A batch of images (or any arrays) of real numbers."""

Batch = Num[Array, "batch *shape"]
"""A batch of any numbers: images, tokens, bits."""

Time = Float[Array, "batch"] | Float[Array, ""] | float
"""Times in [0, 1]: 0 is data, 1 is noise; one per example, or one for all."""


DataRange = tuple[float, float]
"""(low, high) of the numbers in clean data: what thresholds clip to and likelihoods divide into 256 levels."""

PIXELS: DataRange = (-1.0, 1.0)
"""The range of the library's pixels: uint8 as x / 127.5 - 1."""

PerExample = Float[Array, "batch"]
"""One number per example: losses, weights, terms of a bound."""


@runtime_checkable
class Corruption(Protocol):
    """What the sampling loop and a loss need of any process, be its noise Gaussian or flipped bits.

    Time runs from data at t = 0 to noise at t = 1; a chain's step i of T, from 0, is at t = (i + 1) / T.
    """

    num_steps: int | None
    """T of a chain; None in continuous time."""

    def prior(self, key: jax.Array, shape: tuple[int, ...], t: float = 1.0) -> jax.Array:
        """Draw what sampling starts from at time t, 1 or little less: x_t of the shape given, with nothing known of x0."""

    def corrupt(self, key: jax.Array, x0: jax.Array, t: Time) -> tuple[jax.Array, Any]:
        """Draw x_t of q(x_t | x0) for x0 [B, ...] and times t, one or [B]; also return the noise that was drawn."""


class Denoised(NamedTuple):
    """What a network's output says about x_t = alpha * x0 + sigma * eps.

    Attributes:
      x0: the predicted clean data, shaped like x_t; not clipped unless a guidance clipped it.
      eps: the predicted noise, consistent with x0 through x_t.
      raw_variance: the network's variance channels, shaped like x_t, where the process learns its reverse variance.
      mean: of x one step of the chain earlier, where that is what the network predicts; None where guidance moved x0.
      classifier_gradient: what a classifier added to the score, which x0 and eps already contain: scale * grad log
        p(label | x_t). Solvers that draw from a Gaussian move its mean by it. None without a classifier, or where other
        guidance came after it.
    """

    x0: Data
    eps: Data
    raw_variance: Data | None = None
    mean: Data | None = None
    classifier_gradient: Data | None = None

    def moved(self, x0: Data, eps: Data) -> Denoised:
        """Return the same with another consistent pair, without what belongs to the x0 before: mean and classifier_gradient."""
        return self._replace(x0=x0, eps=eps, mean=None, classifier_gradient=None)


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A callable (x_t, t) -> `Denoised`, and the process whose x_t it denoises.

    Solvers and guidance know nothing else: no network, no parameters, no conditioning. A process that is not Gaussian has
    another result than `Denoised`, which its own solvers know.
    """

    function: Callable[[Data, Time], Denoised]
    process: Any  # a `Corruption`; here and in all that takes Gaussian noise for granted, a `Process`

    def __call__(self, x_t: Batch, t: Time) -> Any:
        """Denoise a batch.

        Args:
          x_t: noisy data [B, ...], float32 where the process is Gaussian.
          t: times [B], or one time for all, in (0, 1].
        """
        t = jnp.asarray(t, jnp.promote_types(x_t.dtype, jnp.float32))
        return self.function(x_t, jnp.broadcast_to(t, x_t.shape[:1]))

    def replace(self, function: Callable[[Data, Time], Denoised]) -> Denoiser:
        """Return the same process with another function: how guidance wraps a denoiser."""
        return dataclasses.replace(self, function=function)


def expand(values: Any, x: jax.Array) -> jax.Array:
    """Append axes to per-example values [B] (or a scalar) so that they broadcast against x [B, ...]."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values
