"""Layers shared by the image networks: embeddings, normalisation, convolutions, resampling with and without filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

Flavour = Literal["ddpm", "adm"]
Dtype = Any


def sinusoidal_embedding(values: jax.Array, dim: int, flavour: Flavour) -> jax.Array:
    """Return sines and cosines of a number at geometrically spaced frequencies.

    Args:
      values: [B], usually a timestep in 0..1000.
      dim: the width of the result; an odd one is padded with a zero.
      flavour: "ddpm" is [sin, cos] with 1e-4 as the last frequency (arXiv 2006.11239); "adm" is [cos, sin] with
        frequencies 1e-4^(k / half) (arXiv 2102.09672).

    Returns:
      [B, dim] float32.
    """
    half = dim // 2
    last = half - 1 if flavour == "ddpm" else half
    frequencies = jnp.exp(-math.log(1e4) / max(last, 1) * jnp.arange(half, dtype=jnp.float32))
    angles = values.astype(jnp.float32)[:, None] * frequencies[None]
    parts = (jnp.sin(angles), jnp.cos(angles))
    embedding = jnp.concatenate(parts if flavour == "ddpm" else parts[::-1], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim - 2 * half)))


def draw(sample: Callable[..., jax.Array], key: jax.Array, shape: Sequence[int], **kwargs: Any) -> jax.Array:
    """Draw `sample(key, shape=shape)` of `jax.random`; on a CPU the same numbers are drawn along one axis.

    XLA's CPU compiler takes up to three seconds for a draw along four axes inside a program, and a tenth of one along
    one. Elsewhere the axes stay, so that a sharded array is drawn where it lives, never whole.
    """
    flat = lambda key: sample(key, shape=(math.prod(shape),), **kwargs).reshape(shape)  # noqa: E731
    return jax.lax.platform_dependent(key, cpu=flat, default=lambda key: sample(key, shape=shape, **kwargs))


def dense_init(scale: float = 1.0) -> initializers.Initializer:
    """Return DDPM's initialiser: variance scaling, fan average, uniform; scale 0 gives zeros."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        fan_average = math.prod(shape[:-2]) * (shape[-2] + shape[-1]) / 2
        return draw(jax.random.uniform, key, shape, dtype=dtype, minval=-1) * math.sqrt(3 * scale / fan_average)

    return init if scale else initializers.zeros_init()


def normal_init(deviation: float = 1.0) -> initializers.Initializer:
    """Return the initialiser of normal numbers, as for a table of embeddings."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        return draw(jax.random.normal, key, shape, dtype=dtype) * deviation

    return init


class Dropout(nn.Module):
    """Sets a share of the entries to zero and scales the others up; needs the key "dropout" unless `rate` is 0."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        keep = draw(jax.random.bernoulli, self.make_rng("dropout"), x.shape, p=1 - self.rate)
        return jnp.where(keep, x / (1 - self.rate), 0)


class MLPEmbedding(nn.Module):
    """Dense, SiLU, Dense on an embedding, in float32."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.features, kernel_init=dense_init(), name="in")(x)
        return nn.Dense(self.features, kernel_init=dense_init(), name="out")(nn.silu(x))


class GroupNorm(nn.Module):
    """Group normalisation with float32 statistics, applied as one multiply-add per channel.

    Reducing over space first, then over the channels of a group, keeps the large reductions contiguous. Called with
    `scale` and `shift` [B, C], float32, it returns norm(x) * (1 + scale) + shift: the adaptive norm of ADM, still one
    multiply-add and rounded to `dtype` once. `groups` 0 stands for one group for every 4 channels, at most 32 (EDM).
    """

    groups: int
    epsilon: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1]
        weight = self.param("scale", initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", initializers.zeros_init(), (channels,), jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        wide = x.astype(jnp.float32)
        # Moments about each channel's own mean: no cancellation, whatever the offset of the image.
        channel_mean = wide.mean(space)
        centred = wide - channel_mean.reshape(x.shape[0], *(1,) * len(space), channels)
        channel_var = jnp.square(centred).mean(space)
        groups = self.groups or max(min(32, channels // 4), 1)
        grouped = (x.shape[0], groups, channels // groups)
        group_mean = channel_mean.reshape(grouped).mean(-1, keepdims=True)
        spread = jnp.square(channel_mean.reshape(grouped) - group_mean)
        variance = (channel_var.reshape(grouped) + spread).mean(-1, keepdims=True)
        factor = (jax.lax.rsqrt(variance + self.epsilon) * weight.reshape(grouped[1:])).reshape(x.shape[0], channels)
        offset = bias - group_mean.repeat(grouped[-1], -1).reshape(x.shape[0], channels) * factor
        if scale is not None and shift is not None:
            factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
        broadcast = (x.shape[0], *(1,) * len(space), channels)
        return (wide * factor.reshape(broadcast) + offset.reshape(broadcast)).astype(self.dtype)


def conv(
    features: int, kernel: int, name: str, dtype: Dtype, *, zero: bool = False, init: float = 1.0, **kwargs: Any
) -> nn.Conv:
    """Return a square convolution with DDPM's initialiser (at the scale `init`), float32 parameters and `dtype` compute."""
    kernel_init = dense_init(0.0 if zero else init)
    return nn.Conv(features, (kernel, kernel), kernel_init=kernel_init, dtype=dtype, name=name, **kwargs)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Enlarge [B, H, W, C] to [B, 2H, 2W, C] by repeating pixels."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def downsample_average(x: jax.Array) -> jax.Array:
    """Shrink [B, 2H, 2W, C] to [B, H, W, C] by 2x2 means."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Downsample(nn.Module):
    """A convolution of stride 2; padding "same" pads (0, 1) as DDPM does, "symmetric" (1, 1) as ADM does."""

    padding: Literal["same", "symmetric"]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pad = ((0, 1), (0, 1)) if self.padding == "same" else ((1, 1), (1, 1))
        return conv(x.shape[-1], 3, "conv", self.dtype, strides=(2, 2), padding=pad)(x)


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv(x.shape[-1], 3, "conv", self.dtype)(upsample_nearest(x))


# Halving and doubling with a short filter, separably: the antialiased resampling of NCSN++ and StyleGAN -------------


def downsample(x: jax.Array, taps: Sequence[float], pad: int | None = None) -> jax.Array:
    """Filter with zeros around the image, and keep every second pixel.

    Args:
      x: [B, H, W, C] with even H and W.
      taps: of the filter along each axis, an even number of them; normalised to the sum 1. (1, 1) is 2x2 means.
      pad: zeros on every side, len(taps) / 2 - 1 by default, which gives [B, H/2, W/2, C]; 0 where x brings its own.
    """
    if tuple(taps) == (1, 1) and not pad:
        return downsample_average(x)
    pad = len(taps) // 2 - 1 if pad is None else pad
    return _halve(_halve(x, taps, pad, 1), taps, pad, 2)


def upsample(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Put zeros between the pixels and filter, keeping the brightness: [B, H, W, C] -> [B, 2H, 2W, C].

    Args:
      taps: as in `downsample`; (1, 1) is nearest neighbour.
    """
    if tuple(taps) == (1, 1):
        return upsample_nearest(x)
    return _double(_double(x, taps, 1), taps, 2)


def _pad(x: jax.Array, amount: int, axis: int) -> jax.Array:
    return jnp.pad(x, [(amount, amount) if a == axis else (0, 0) for a in range(x.ndim)])


def _halve(x: jax.Array, taps: Sequence[float], pad: int, axis: int) -> jax.Array:
    padded, total = _pad(x, pad, axis), sum(taps)
    size = (padded.shape[axis] - len(taps)) // 2 + 1
    parts = [jax.lax.slice_in_dim(padded, k, k + 2 * size - 1, 2, axis) * (tap / total) for k, tap in enumerate(taps)]
    return sum(parts[1:], parts[0])


def _double(x: jax.Array, taps: Sequence[float], axis: int) -> jax.Array:
    """Output 2m + r is the sum over taps k of the parity of r + pad, of 2 tap_k x[m + (r + pad - k) / 2]."""
    size, half, pad, total = x.shape[axis], len(taps) // 2, len(taps) // 2 - 1, sum(taps)
    padded = _pad(x, half, axis)
    phases = []
    for r in (0, 1):
        chosen = [(k, (r + pad - k) // 2 + half) for k in range(len(taps)) if (r + pad - k) % 2 == 0]
        phases.append(sum(jax.lax.slice_in_dim(padded, at, at + size, axis=axis) * (2 * taps[k] / total) for k, at in chosen))
    doubled = jnp.stack(phases, axis + 1)
    return doubled.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
