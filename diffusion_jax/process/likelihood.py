"""The variational bound in bits per dimension, term by term, for data of 256 evenly spaced levels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.process.process import Process, gaussian
from diffusion_jax.process.tables import floating
from diffusion_jax.process.types import PIXELS, Data, DataRange, Denoised, Denoiser, PerExample, Time
from diffusion_jax.rng import named

_BITS = 1 / math.log(2)


def check_data(x0: jax.Array, data_range: DataRange | None = None) -> None:
    """Raise a `DataError` for pixels that have not been brought to floating numbers in their range.

    Args:
      data_range: that x0 must not leave by more than its width; None is any. The values of traced data pass unseen.
    """
    if not jnp.issubdtype(x0.dtype, jnp.floating):
        raise DataError(f"clean data must be floating numbers, got {x0.dtype}: for pixels of uint8, x / 127.5 - 1")
    if data_range is None or isinstance(x0, jax.core.Tracer) or not x0.is_fully_addressable:
        return
    values, width = np.asarray(x0), data_range[1] - data_range[0]
    low, high = values.min(), values.max()
    if not (data_range[0] - width <= low and high <= data_range[1] + width):
        raise DataError(
            f"clean data run from {low:g} to {high:g}, but their 256 levels from {data_range[0]:g} to {data_range[1]:g}: for "
            "pixels of 0 to 255, x / 127.5 - 1; else give data_range"
        )


def _per_example(values: jax.Array) -> PerExample:
    return values.reshape(values.shape[0], -1).mean(-1)


def normal_kl(mean_p: jax.Array, log_var_p: jax.Array, mean_q: jax.Array, log_var_q: jax.Array) -> jax.Array:
    """Return KL(p || q) of diagonal Gaussians in nats, elementwise."""
    gap = log_var_p - log_var_q
    # exp(gap) - 1 - gap keeps its digits near 0, and the distance its range where the variance is below 1e-38.
    return 0.5 * (jnp.expm1(gap) - gap + ((mean_p - mean_q) * jnp.exp(-0.5 * log_var_q)) ** 2)


def tanh_cdf(x: jax.Array) -> jax.Array:
    """Return the standard normal distribution function, to 3e-4 by a tanh, as published likelihoods have it."""
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(
    x: jax.Array, mean: jax.Array, log_variance: jax.Array, tanh: bool = False, data_range: DataRange = PIXELS
) -> jax.Array:
    """Return the log-probability in nats of the bin of x, elementwise, under a Gaussian cut into 256 bins.

    The outermost bins reach to infinity; probabilities are floored at 1e-12.

    Args:
      tanh: approximate the distribution function by `tanh_cdf`, to compare with published numbers.
      data_range: the first and the last of the 256 levels, at the middle of their bins.

    Source: Ho et al. 2020, equation 13 (arXiv 2006.11239).
    """
    low, high = data_range
    half, edge = (high - low) / 510, (high - low) / 2000  # of a bin; how near an end counts as the end
    inverse = jnp.exp(-0.5 * log_variance)
    upper = jnp.where(x > high - edge, jnp.inf, (x + half - mean) * inverse)
    lower = jnp.where(x < low + edge, -jnp.inf, (x - half - mean) * inverse)
    # Differences of the smaller tail keep their digits.
    flip = lower > 0
    upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    cdf = tanh_cdf if tanh else jax.scipy.stats.norm.cdf
    probability = cdf(upper) - cdf(lower)
    return jnp.log(jnp.maximum(probability, 1e-12))


def vlb_term(
    process: Process,
    denoised: Denoised,
    x0: Data,
    x_t: Data,
    s: Time,
    t: Time,
    data_range: DataRange = PIXELS,
    later: Time | None = None,
) -> PerExample:
    """Return one term of the bound, [B], bits per dimension.

    For s > 0, KL(q(x_s | x_t, x0) || p(x_s | x_t)); for s = 0, minus the log-likelihood of x0's bin, by the process's
    `decoder` (for `data_range`, see `discretized_gaussian_log_likelihood`; for `later`, `Process.posterior`).
    """
    s = jnp.broadcast_to(jnp.asarray(s), x_t.shape[:1])
    true_mean, true_log_variance = process.posterior(x0, x_t, s, t, later)
    mean = process.reverse_mean(denoised, x_t, s, t)
    log_variance = process.reverse_log_variance(denoised, s, t, later=later)
    kl = _per_example(normal_kl(true_mean, true_log_variance, mean, log_variance))
    tanh = process.decoder == "tanh"
    decoder = _per_example(-discretized_gaussian_log_likelihood(x0, mean, log_variance, tanh, data_range))
    return jnp.where(s > 0, kl, decoder) * _BITS


def prior_term(process: Process, x0: Data) -> PerExample:
    """Return KL(q(x_1 | x0) || prior) in bits per dimension, [B]; the prior has the noise's variance at t = 1 (1 for VP)."""
    alpha, sigma = process.alpha_sigma(floating(jnp.ones((), x0.dtype)))
    log_prior = jnp.zeros_like(sigma) if process.schedule.family == "vp" else 2 * jnp.log(sigma)
    kl = normal_kl(alpha * x0, 2 * jnp.log(sigma), jnp.zeros_like(x0), log_prior)
    return _per_example(kl) * _BITS


class BitsPerDim(NamedTuple):
    """The bound of each example; total = terms.sum(-1) + prior.

    Attributes:
      total: [B].
      terms: [B, T], from data (the decoder) to noise.
      prior: [B].
      x0_mse, eps_mse: [B, T], the mean squared errors of the predicted x0 and eps. Of categories, the probability of another
        value than x0's, and the share of elements that were replaced.
    """

    total: PerExample
    terms: Float[Array, "batch steps"]
    prior: PerExample
    x0_mse: Float[Array, "batch steps"]
    eps_mse: Float[Array, "batch steps"]


def _count(denoiser: Denoiser, num_steps: int | None, times: Any) -> int:
    """T of `bits_per_dim`."""
    if times is not None:
        times = np.asarray(times, np.float64)
        if times.ndim != 1 or len(times) < 3 or not (np.diff(times) < 0).all() or times[0] > 1 or times[-1] != 0:
            raise ConfigError(f"bits_per_dim: times must descend from at most 1 to 0, by two steps at least, got {times}")
        return len(times) - 1
    count = denoiser.process.num_steps if num_steps is None else num_steps
    if count is None:
        raise ConfigError("bits_per_dim of a continuous process needs num_steps, such as 1000")
    if count < 2:
        raise ConfigError(f"bits_per_dim needs num_steps of at least 2, got {count}")
    return count


def _steps(count: int, times: Any, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(s, t, the step after t) of each term, from data to noise, [T] each."""
    if times is None:
        index = jnp.arange(count, dtype=dtype)
        return index / count, (index + 1) / count, jnp.minimum(index + 2, count) / count
    rising = np.asarray(times, np.float64)[::-1]
    return tuple(jnp.asarray(part, dtype) for part in (rising[:-1], rising[1:], np.append(rising[2:], rising[-1])))


@runtime_checkable
class HasBound(Protocol):
    """A process that is not Gaussian, and has a bound of its own."""

    def bits_per_dim(self, denoiser: Denoiser, x0: Any, key: jax.Array, num_steps: int) -> BitsPerDim:
        """Compute all terms of the bound on T steps, as `bits_per_dim` does."""


def bits_per_dim(
    denoiser: Denoiser,
    x0: jax.Array,
    key: jax.Array | None,
    num_steps: int | None = None,
    clip: bool = True,
    data_range: DataRange = PIXELS,
    *,
    times: Any = None,
    noise: jax.Array | None = None,
) -> BitsPerDim:
    """Measure all terms of the bound, with one noise draw for each; T network evaluations.

    Args:
      x0: clean data [B, ...] of 256 levels; of another process (`HasBound`), what that one takes.
      num_steps: T, by default the chain's own; continuous processes need it.
      clip: clip the predicted x0 to the data's range, as published likelihoods do.
      data_range: the first and the last of the levels, those of pixels by default.
      times: instead of `num_steps`, the descending times of a respaced chain with 0 at their end, such as a grid's: [T + 1].
      noise: standard normal [T, B, ...], from data to noise, to take instead of draws; the key may then be None.

    The term at the data is exact, or published code's, as the process's `decoder` says. `times` and `noise` are for Gaussian
    processes.

    Raises:
      ConfigError: a continuous process without `num_steps`, fewer than 2 steps, times that do not descend to 0, noise of
        another shape.
      DataError: x0 of integers, or outside of `data_range`.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672).
    """
    count = _count(denoiser, num_steps, times)
    if isinstance(denoiser.process, HasBound) and times is None and noise is None:
        return denoiser.process.bits_per_dim(denoiser, x0, key, count)
    process = gaussian(denoiser.process, "bits_per_dim", "one that has its own")
    check_data(x0, data_range)
    if noise is not None and noise.shape != (count, *x0.shape):
        raise ConfigError(f"bits_per_dim: noise has the shape {noise.shape}, not {(count, *x0.shape)}")

    def step(carry: None, inputs: Any) -> tuple[None, tuple[jax.Array, ...]]:
        index, s, t, later, eps = inputs
        if eps is None:
            x_t, eps = process.corrupt(named(key, "noise", index), x0, t)
        else:
            x_t = process.diffuse(x0, t, eps)
        denoised = denoiser(x_t, t)
        if clip:
            denoised = process.clipped(denoised, x_t, t, data_range)
        errors = [_per_example(difference**2) for difference in (denoised.x0 - x0, denoised.eps - eps)]
        return None, (vlb_term(process, denoised, x0, x_t, s, t, data_range, later), *errors)

    steps = _steps(count, times, jnp.promote_types(x0.dtype, jnp.float32))
    _, (terms, x0_mse, eps_mse) = jax.lax.scan(step, None, (jnp.arange(count), *steps, noise))
    prior = prior_term(process, x0)
    return BitsPerDim(terms.sum(0) + prior, terms.T, prior, x0_mse.T, eps_mse.T)
