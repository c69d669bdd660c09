"""Likelihoods by the probability-flow ODE: data are carried to noise, and what the flow does to volumes is added up.

The flow is run in coordinates of unit variance, z = x / sqrt(alpha^2 + sigma^2), and with the angle atan(sigma / alpha)
as time its velocity is cos * eps - sin * x0, bounded for every family of processes. Steps are even in log-SNR, in which
the detail of data and the noise each take the same share of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process.likelihood import check_data
from diffusion_jax.process.process import gaussian
from diffusion_jax.process.types import PIXELS, Data, DataRange, Denoiser, PerExample
from diffusion_jax.rng import named
from diffusion_jax.sampling.loop import sample_keys

METHODS = {"euler": 1, "heun": 2, "rk4": 4}
"""Rules of integration, and their network evaluations a step."""

DIVERGENCES = ("hutchinson", "exact")

_LEVELS = (1e-3, 1e3)  # of sigma / alpha, that the flow runs between, where the process has them


def log_likelihood(
    denoiser: Denoiser,
    x0: Data,
    key: jax.Array | None = None,
    *,
    num_steps: int = 50,
    method: str = "rk4",
    divergence: str = "hutchinson",
    probes: int = 1,
    indices: Any = None,
    levels: tuple[float, float] | None = None,
) -> PerExample:
    """Return log p(x0) in nats, of the density that the probability-flow ODE makes of noise.

    Jit-able with the parameters bound inside the function; forward only.

    Args:
      denoiser: without guidance, whose flow is that of no density. What is conditioned on is bound for the whole batch.
      x0: data [B, ...], floating; images with noise that makes them continuous (`dequantize`).
      key: of the probes. Sample i's come from fold_in(key, indices[i]); not needed for "exact".
      num_steps: of the integration. "rk4" takes four evaluations of the denoiser a step, "heun" two, "euler" one; each is
        differentiated in one direction for every probe, or for every dimension.
      divergence: "hutchinson", an unbiased estimate from random signs, held along the flow; or "exact", the trace of the
        Jacobian, for few dimensions.
      probes: for each example, averaged over.
      indices: int [B], 0..B-1 by default.
      levels: (lowest, highest) sigma / alpha of the flow. By default from 1e-3, or a chain's first step where that is
        more, to the process's last, or 1e3 where that is less. The density is that of data with noise of the lowest
        level: detail finer than that costs likelihood.

    Returns:
      [B], of the dtype of x0.

    Raises:
      ConfigError: an unknown method or divergence, numbers below 1, no key for probes, or levels that do not rise.
      DataError: x0 of integers.

    Sources: Song et al. 2021, appendix D.2 (arXiv 2011.13456); Grathwohl et al. 2019 (arXiv 1810.01367).
    """
    gaussian(denoiser.process, "the likelihood of a flow", "bits_per_dim of that process")
    check_data(x0)
    _check(method, divergence, num_steps, probes, key)
    schedule = denoiser.process.schedule
    grid = _log_snrs(denoiser, num_steps, levels)
    if divergence == "exact":
        directions = None
    else:
        keys = sample_keys(key, len(x0), indices)
        draw = lambda k: jax.random.rademacher(named(k, "probe"), (probes, *x0.shape[1:]), x0.dtype)  # noqa: E731
        directions = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)

    def slope(z: jax.Array, log_snr: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return dz and d(log-density) for a unit of log-SNR."""
        alpha, sigma = denoiser.process.alpha_sigma(t)
        size = jnp.sqrt(alpha**2 + sigma**2)
        turn = -0.5 * (alpha / size) * (sigma / size)  # of the angle

        def velocity(z: jax.Array) -> jax.Array:
            denoised = denoiser(size * z, t)
            return turn * (alpha / size * denoised.eps - sigma / size * denoised.x0)

        return _with_divergence(velocity, z, directions)

    level = math.exp(-0.5 * grid[0])
    z = x0 / math.sqrt(1 + level**2)
    z, gained = _integrate(slope, z, grid, schedule.inverse, method)
    dims = math.prod(x0.shape[1:])
    return _log_prior(denoiser, z, grid[-1]) + gained - 0.5 * dims * math.log1p(level**2)


def dequantize(x0: Data, key: jax.Array, indices: Any = None, data_range: DataRange = PIXELS) -> Data:
    """Add uniform noise as wide as a level to images of 256 levels, so that they have a density.

    Args:
      key: sample i's noise comes from fold_in(key, indices[i]).
      data_range: the first and the last level; the width is their distance over 255, 1 / 127.5 for pixels.
    """
    keys = sample_keys(key, len(x0), indices)
    draw = lambda k: jax.random.uniform(named(k, "dequantize"), x0.shape[1:], x0.dtype, -0.5, 0.5)  # noqa: E731
    return x0 + jax.vmap(draw)(keys) / (255 / (data_range[1] - data_range[0]))


def ode_bits_per_dim(
    denoiser: Denoiser,
    x0: Data,
    key: jax.Array | None,
    *,
    indices: Any = None,
    data_range: DataRange = PIXELS,
    noise: Data | None = None,
    **settings: Any,
) -> PerExample:
    """Measure bits per dimension of images of 256 levels under the probability-flow ODE, with uniform dequantisation.

    -log2 p / D - log2(w), with w the width of a level, 1 / 127.5 for pixels. In expectation over the dequantisation (and
    over Hutchinson's probes) it is an upper bound on the bits that the density needs for the levels.

    Args:
      x0: clean images [B, ...] of 256 levels.
      key: of the dequantisation and of the probes; None where neither draws.
      indices: int [B], 0..B-1 by default.
      data_range: the first and the last level, those of pixels by default.
      noise: of the dequantisation, in widths of a level from -0.5 to 0.5, shaped like x0, to take instead of a draw.
      settings: of `log_likelihood`.

    Returns:
      [B], of the dtype of x0.

    Raises:
      ConfigError, DataError: as `log_likelihood`; no key to draw the dequantisation from; x0 outside of `data_range`.

    Source: Song et al. 2021, section 4.3 (arXiv 2011.13456).
    """
    check_data(x0, data_range)
    if noise is None and key is None:
        raise ConfigError("ode_bits_per_dim: the dequantisation needs a key, or its noise")
    width, dims = (data_range[1] - data_range[0]) / 255, math.prod(x0.shape[1:])
    images = dequantize(x0, key, indices, data_range) if noise is None else x0 + width * noise
    nats = log_likelihood(denoiser, images, key, indices=indices, **settings)
    return -nats / (dims * math.log(2)) - math.log2(width)


def _check(method: str, divergence: str, num_steps: int, probes: int, key: Any) -> None:
    check_choice("log_likelihood: method", method, METHODS)
    check_choice("log_likelihood: divergence", divergence, DIVERGENCES)
    if num_steps < 1 or probes < 1:
        raise ConfigError(f"log_likelihood needs num_steps and probes of at least 1, got {num_steps} and {probes}")
    if divergence == "hutchinson" and key is None:
        raise ConfigError("log_likelihood: the probes of 'hutchinson' need a key; in few dimensions use divergence='exact'")


def _log_snrs(denoiser: Denoiser, num_steps: int, levels: tuple[float, float] | None) -> np.ndarray:
    """float64 [num_steps + 1], falling: from data to noise."""
    schedule = denoiser.process.schedule
    last = float(schedule.log_snr(np.float64(1.0)))
    if levels is None:
        high, low = -2 * math.log(_LEVELS[0]), max(-2 * math.log(_LEVELS[1]), last)
        if schedule.num_steps:
            high = min(high, float(schedule.log_snr(np.float64(1 / schedule.num_steps))))
    else:
        if not 0 < levels[0] < levels[1] < math.inf:
            raise ConfigError(f"log_likelihood: levels of sigma / alpha must rise and be positive, got {levels}")
        high, low = (-2 * math.log(level) for level in levels)
        low = max(low, last)
    if high <= low:
        raise ConfigError(f"log_likelihood: {schedule.name!r} ends at log-SNR {last:.3g}, before the lowest level {levels}")
    return np.linspace(high, low, num_steps + 1)


def _with_divergence(
    velocity: Callable[[jax.Array], jax.Array], z: jax.Array, directions: jax.Array | None
) -> tuple[Data, PerExample]:
    """A velocity and its divergence, examples being independent of one another.

    Args:
      directions: [probes, B, ...] of signs, or None for every axis in turn.
    """
    value, push = jax.linearize(velocity, z)
    if directions is not None:
        products = jax.lax.map(lambda d: (d * push(d)).reshape(z.shape[0], -1).sum(-1), directions)
        return value, products.mean(0)
    dims = math.prod(z.shape[1:])

    def entry(axis: jax.Array) -> jax.Array:
        direction = jnp.broadcast_to(jax.nn.one_hot(axis, dims, dtype=z.dtype).reshape(z.shape[1:]), z.shape)
        return push(direction).reshape(z.shape[0], -1)[:, axis]

    return value, jax.lax.map(entry, jnp.arange(dims)).sum(0)


def _integrate(slope: Callable, z: jax.Array, grid: np.ndarray, inverse: Callable, method: str) -> tuple[Data, PerExample]:
    """z at the grid's end, and the integral of the divergence over the grid."""
    middles = 0.5 * (grid[:-1] + grid[1:])
    points = np.stack([grid[:-1], middles, grid[1:]], axis=1)
    steps = tuple(jnp.asarray(values, z.dtype) for values in (np.diff(grid), points, inverse(points)))

    def step(carry: Any, inputs: Any) -> Any:
        (z, total), (h, log_snr, t) = carry, inputs
        at = lambda place, z: slope(z, log_snr[place], t[place])  # noqa: E731
        k1 = at(0, z)
        if method == "euler":
            weighted = [(1.0, k1)]
        elif method == "heun":
            weighted = [(0.5, k1), (0.5, at(2, z + h * k1[0]))]
        else:
            k2 = at(1, z + 0.5 * h * k1[0])
            k3 = at(1, z + 0.5 * h * k2[0])
            weighted = [(1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, at(2, z + h * k3[0]))]
        z = z + h * sum(weight * k[0] for weight, k in weighted)
        return (z, total + h * sum(weight * k[1] for weight, k in weighted)), None

    (z, total), _ = jax.lax.scan(step, (z, jnp.zeros(z.shape[0], z.dtype)), steps)
    return z, total


def _log_prior(denoiser: Denoiser, z: jax.Array, log_snr: float) -> PerExample:
    """Of z at the end: normal with the variance that the sampler starts with, 1 for a variance-preserving process."""
    level = math.exp(-0.5 * log_snr)
    variance = 1.0 if denoiser.process.schedule.family == "vp" else level**2 / (1 + level**2)
    squares = (z**2).reshape(z.shape[0], -1)
    return -0.5 * (squares.sum(-1) / variance + squares.shape[1] * math.log(2 * math.pi * variance))
