"""The variational bound in bits per dimension, term by term, for data of 256 levels in [-1, 1]."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoised, Denoiser, Time
from diffusion_jax.rng import named

_BITS = 1 / math.log(2)


def _per_example(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1).mean(-1)


def normal_kl(mean_p: jax.Array, log_var_p: jax.Array, mean_q: jax.Array, log_var_q: jax.Array) -> jax.Array:
    """KL(p || q) of diagonal Gaussians in nats, elementwise."""
    return 0.5 * (
        log_var_q - log_var_p - 1 + jnp.exp(log_var_p - log_var_q) + (mean_p - mean_q) ** 2 * jnp.exp(-log_var_q)
    )


def discretized_gaussian_log_likelihood(x: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Log-probability in nats of the bin of x, elementwise, under a Gaussian cut into 256 bins over [-1, 1].

    The outermost bins reach to infinity; probabilities are floored at 1e-12.

    Source: Ho et al. 2020, equation 13 (arXiv 2006.11239).
    """
    inverse = jnp.exp(-0.5 * log_variance)
    upper = jnp.where(x > 0.999, jnp.inf, (x + 1 / 255 - mean) * inverse)
    lower = jnp.where(x < -0.999, -jnp.inf, (x - 1 / 255 - mean) * inverse)
    # Differences of the smaller tail keep their digits.
    flip = lower > 0
    upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    probability = jax.scipy.stats.norm.cdf(upper) - jax.scipy.stats.norm.cdf(lower)
    return jnp.log(jnp.maximum(probability, 1e-12))


def vlb_term(process: Process, denoised: Denoised, x0: Data, x_t: Data, s: Time, t: Time) -> jax.Array:
    """One term of the bound, [B], bits per dimension.

    For s > 0, KL(q(x_s | x_t, x0) || p(x_s | x_t)); for s = 0, minus the log-likelihood of x0's bin.
    """
    s = jnp.broadcast_to(jnp.asarray(s), x_t.shape[:1])
    true_mean, true_log_variance = process.posterior(x0, x_t, s, t)
    mean, _ = process.posterior(denoised.x0, x_t, s, t)
    log_variance = process.reverse_log_variance(denoised, s, t)
    kl = _per_example(normal_kl(true_mean, true_log_variance, mean, log_variance))
    decoder = _per_example(-discretized_gaussian_log_likelihood(x0, mean, log_variance))
    return jnp.where(s > 0, kl, decoder) * _BITS


def prior_term(process: Process, x0: Data) -> jax.Array:
    """KL(q(x_1 | x0) || prior) in bits per dimension, [B]; the prior has the noise's variance at t = 1 (1 for VP)."""
    alpha, sigma = process.alpha_sigma(jnp.float32(1.0))
    log_prior = 0.0 if process.schedule.family == "vp" else 2 * jnp.log(sigma)
    kl = normal_kl(alpha * x0, 2 * jnp.log(sigma), jnp.zeros_like(x0), jnp.asarray(log_prior))
    return _per_example(kl) * _BITS


class BitsPerDim(NamedTuple):
    """The bound of each example; total = terms.sum(-1) + prior.

    Attributes:
      total: [B].
      terms: [B, T], from data (the decoder) to noise.
      prior: [B].
      x0_mse: [B, T], the squared error of the predicted x0.
    """

    total: jax.Array
    terms: jax.Array
    prior: jax.Array
    x0_mse: jax.Array


def bits_per_dim(
    denoiser: Denoiser, x0: Data, key: jax.Array, num_steps: int | None = None, clip: bool = True
) -> BitsPerDim:
    """All terms of the bound, with one noise draw for each; T network evaluations.

    Args:
      x0: clean data [B, ...] of 256 levels in [-1, 1].
      num_steps: T, by default the chain's own; continuous processes need it.
      clip: clip the predicted x0 to [-1, 1], as published likelihoods do.

    Raises:
      ConfigError: a continuous process without `num_steps`.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672).
    """
    process = denoiser.process
    count = num_steps or process.num_steps
    if not count:
        raise ConfigError("bits_per_dim of a continuous process needs num_steps, such as 1000")

    def step(carry: None, index: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        s, t = index / count, (index + 1) / count
        eps = jax.random.normal(named(key, "noise", index.astype(int)), x0.shape)
        x_t = process.diffuse(x0, t, eps)
        denoised = denoiser(x_t, t)
        if clip:
            denoised = process.with_x0(denoised, jnp.clip(denoised.x0, -1, 1), x_t, t)
        mse = _per_example((denoised.x0 - x0) ** 2)
        return None, (vlb_term(process, denoised, x0, x_t, s, t), mse)

    _, (terms, mse) = jax.lax.scan(step, None, jnp.arange(count, dtype=jnp.float32))
    prior = prior_term(process, x0)
    return BitsPerDim(terms.sum(0) + prior, terms.T, prior, mse.T)
