"""SDEdit: noise a guide part of the way, and sample back from there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.rng import named
from diffusion_jax.sampling.editing.common import after_each_step, checked_mask, keys_of, mixed, normal, snapped
from diffusion_jax.sampling.grids import Grid
from diffusion_jax.sampling.sample import sample, times_of
from diffusion_jax.sampling.solvers import Solver


def sdedit(
    denoiser: Denoiser,
    solver: Solver,
    grid: Grid | Any,
    key: jax.Array,
    guide: Data,
    strength: float,
    mask: Any = None,
    repeats: int = 1,
    *,
    indices: Any = None,
) -> jax.Array:
    """Draw images that resemble a guide: strokes, a collage, another model's image.

    x = alpha * guide + sigma * n at the time `strength`, from which the solver walks what is left of the grid.

    Args:
      guide: [B, ...], float.
      strength: the time t0 in [0, 1], on a chain its nearest step: 0 returns the guide, 1 forgets it as far as the process
        does. The paper's are 0.3 to 0.6.
      mask: 1 where the guide is kept, exactly, and 0 where it may change, [B, ...] or [...]; after every step the kept
        part is the guide with the same noise n.
      repeats: how often the result becomes the next guide; 1 to 3 in the paper.
      indices: int [B]; image i's noise is a function of (key, indices[i]).

    Returns:
      [B, ...] float, not clipped.

    Raises:
      ConfigError: a strength outside of [0, 1], a mask of another size, no repeat.

    Source: Meng et al. 2022, algorithms 1 to 4 (arXiv 2108.01073).
    """
    if not 0 <= strength <= 1:
        raise ConfigError(f"sdedit: strength must lie in [0, 1], got {strength}")
    if repeats < 1:
        raise ConfigError(f"sdedit: repeats must be at least 1, got {repeats}")
    mask = None if mask is None else checked_mask(mask, guide)
    start = snapped(denoiser.process, strength)
    if start == 0:
        return guide
    times = times_of(grid, denoiser)
    times = np.append(start, times[times < start * (1 - 1e-6)])
    x = guide
    for number in range(repeats):
        again = named(key, "repeat", number)
        n = normal(keys_of(again, guide, indices), guide, "guide")
        held = solver if mask is None else _keeping(solver, guide, mask, n)
        begun = denoiser.process.diffuse(x, jnp.float32(start), n)
        x = sample(denoiser, held, times, named(again, "solver"), guide.shape, indices=indices, initial=begun)
    return x


def _keeping(solver: Solver, guide: Data, mask: jax.Array, n: Data) -> Solver:
    """A solver that puts the kept part back after each step, with the one noise that the chain began with."""

    def change(process: Process, x: Data, s: jax.Array, noise: Any) -> jax.Array:
        return mixed(mask, process.diffuse(guide, s, n), x)

    return after_each_step(solver, change)
