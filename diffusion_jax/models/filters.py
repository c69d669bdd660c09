"""Halving and doubling of images with a short filter, separably: the antialiased resampling of NCSN++ and StyleGAN."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffusion_jax.models.layers import downsample_average, upsample_nearest


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
