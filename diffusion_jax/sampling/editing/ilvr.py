"""ILVR: images that share their low frequencies with a reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.sampling.editing.common import after_each_step
from diffusion_jax.sampling.grids import Grid
from diffusion_jax.sampling.sample import sample
from diffusion_jax.sampling.solvers import Noise, Solver


def low_pass(images: jax.Array, factor: int) -> jax.Array:
    """phi_N: shrunk N times and enlarged again, with a cubic kernel that is widened where it shrinks (anti-aliasing).

    Linear; applied twice it is nearly what it is applied once.

    Args:
      images: [B, H, W, C], H and W multiples of the factor.
      factor: N; 1 leaves the images as they are.

    Raises:
      ConfigError: a factor that does not divide both sides.
    """
    batch, height, width, channels = images.shape
    if factor < 1 or height % factor or width % factor:
        raise ConfigError(f"ilvr: the factor {factor} must divide the images' sides, {height}x{width}")
    if factor == 1:
        return images
    small = jax.image.resize(images, (batch, height // factor, width // factor, channels), "cubic", antialias=True)
    return jax.image.resize(small, images.shape, "cubic", antialias=True)


def ilvr(
    denoiser: Denoiser,
    solver: Solver,
    grid: Grid | Any,
    key: jax.Array,
    reference: Data,
    factor: int,
    stop: float = 0.0,
    *,
    indices: Any = None,
) -> jax.Array:
    """Draw images whose low frequencies are a reference's.

    After each step to a time s, x_s <- x_s + phi_N(y_s) - phi_N(x_s), where y_s is the reference with fresh noise.

    Args:
      solver: the paper's is ancestral.
      reference: [B, H, W, C], float.
      factor: N of `low_pass`; the larger, the less is held fast.
      stop: the time in [0, 1) below which nothing is held any more, so that detail can form ("range_t" 20 of 100 steps is
        0.2 of their grid); at 0 the last step is held too, and the result's low frequencies are the reference's.
      indices: int [B]; image i's noise is a function of (key, indices[i]).

    Returns:
      [B, H, W, C] float, not clipped.

    Raises:
      ConfigError: a factor that does not divide the sides, a stop outside of [0, 1).

    Source: Choi et al. 2021, algorithm 1 (arXiv 2108.02938).
    """
    if not 0 <= stop < 1:
        raise ConfigError(f"ilvr: stop must lie in [0, 1), got {stop}")
    low_pass(jnp.zeros((1, *reference.shape[1:])), factor)  # a bad factor fails here

    def change(process: Process, x: Data, s: jax.Array, noise: Noise) -> jax.Array:
        difference = low_pass(process.diffuse(reference, s, noise("reference")) - x, factor)
        return x + jnp.where(s >= stop, difference, 0.0)

    return sample(denoiser, after_each_step(solver, change), grid, key, reference.shape, indices=indices)
