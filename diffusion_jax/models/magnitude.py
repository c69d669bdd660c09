"""Layers that keep activations at unit magnitude by construction: EDM2's (Karras et al. 2024, section 2, arXiv 2312.02696).

Magnitude is the root mean square over features. Each layer takes inputs of magnitude 1, where these are independent, to
outputs of magnitude 1; weights are directions, whose length never matters.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers

from diffusion_jax.models.layers import normal_init

EPSILON = 1e-4
CLIP = 256.0
"""Activations are clipped to +-CLIP after each block, so that 16-bit floats hold them."""


def normalize(x: jax.Array, axes: int | tuple[int, ...] = -1) -> jax.Array:
    """Return x over its root mean square along `axes`, in float32, and back in x's dtype."""
    wide = x.astype(jnp.float32)
    return (wide / (EPSILON + jnp.sqrt(jnp.mean(wide * wide, axes, keepdims=True)))).astype(x.dtype)


def normalize_kernel(kernel: jax.Array) -> jax.Array:
    """Return a kernel [..., in, out] whose column for each output has the root mean square 1."""
    return normalize(kernel, tuple(range(kernel.ndim - 1)))


def mp_silu(x: jax.Array) -> jax.Array:
    """Return SiLU over its magnitude on standard normal input, 0.596."""
    return nn.silu(x) / 0.596


def mp_sum(a: jax.Array, b: jax.Array, t: float = 0.5) -> jax.Array:
    """Return (1 - t) a + t b, over the magnitude that this has for independent a and b."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: jax.Array, b: jax.Array, t: float = 0.5) -> jax.Array:
    """Put channels of a and of b side by side, so scaled that b contributes the share t whatever their numbers."""
    channels_a, channels_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt((channels_a + channels_b) / ((1 - t) ** 2 + t**2))
    parts = (a * (scale * (1 - t) / math.sqrt(channels_a)), b * (scale * t / math.sqrt(channels_b)))
    return jnp.concatenate(parts, axis=-1)


Fourier = tuple[tuple[float, ...], tuple[float, ...]]
"""Frequencies and phases of Fourier features, in radians."""


def fourier_constants(features: int) -> Fourier:
    """Return the default frequencies, normal numbers, and phases, uniform, of a fixed seed: each times 2 pi."""
    rng = np.random.default_rng(features)
    frequency, phase = rng.standard_normal(features), rng.uniform(size=features)
    return tuple(tuple(float(x) for x in np.float32(2 * np.pi * part)) for part in (frequency, phase))


def mp_fourier(values: jax.Array, constants: Fourier) -> jax.Array:
    """Return Fourier features sqrt(2) cos(f c + phase) of [B] numbers: float32 [B, features].

    The frequencies f and phases are fixed: they are constants of the architecture, of magnitude 1 where they are drawn as by
    `fourier_constants`.
    """
    frequency, phase = (jnp.array(part, jnp.float32) for part in constants)
    return math.sqrt(2) * jnp.cos(values.astype(jnp.float32)[:, None] * frequency + phase)


class MPConv(nn.Module):
    """A convolution (kernel above 0), or a dense layer (kernel 0), without a bias.

    The stored kernel is a direction for each output; what is applied is normalised and scaled by 1/sqrt(fan in). `gain`,
    where given, multiplies the kernel, which costs less than multiplying the output.
    """

    features: int
    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        window = (self.kernel, self.kernel) if self.kernel else ()
        shape = (*window, x.shape[-1], self.features)
        weight = normalize_kernel(self.param("kernel", normal_init(), shape, jnp.float32))
        weight = (weight * (gain / math.sqrt(math.prod(shape[:-1])))).astype(self.dtype)
        x = x.astype(self.dtype)
        if not window:
            return x @ weight
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Gain(nn.Module):
    """A learned scalar that starts at 0."""

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("gain", initializers.zeros_init(), (), jnp.float32)
