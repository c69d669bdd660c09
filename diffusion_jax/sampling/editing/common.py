"""What the ways of editing share: checked images and masks, noise that belongs to each image, solvers that are held to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.rng import named
from diffusion_jax.sampling.solvers import Noise, Solver


def keys_of(key: jax.Array, images: jax.Array, indices: Any) -> jax.Array:
    """The key of each image, [B]: folded from its index, 0..B-1 by default.

    Raises:
      ConfigError: indices of another shape than [B].
    """
    indices = jnp.arange(images.shape[0]) if indices is None else jnp.asarray(indices)
    if indices.shape != images.shape[:1]:
        raise ConfigError(f"{images.shape[0]} images need indices of the shape ({images.shape[0]},), got {indices.shape}")
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def normal(keys: jax.Array, images: jax.Array, *names: Any) -> jax.Array:
    """Standard normal noise shaped like the images, of each image's key and the names."""
    draw = lambda key: jax.random.normal(named(key, *names), images.shape[1:], images.dtype)  # noqa: E731
    return jax.vmap(draw)(keys)


def checked_mask(mask: Any, images: jax.Array) -> jax.Array:
    """A mask in the images' dtype, that broadcasts against them.

    Args:
      mask: [B, ...] or [...] with as many axes as the images, or as one image; 1 is kept, 0 is drawn.

    Raises:
      ConfigError: of another size than the images.
    """
    mask = jnp.asarray(mask, images.dtype)
    mask = mask[None] if mask.ndim == images.ndim - 1 else mask
    fits = mask.ndim == images.ndim and all(m in (1, size) for m, size in zip(mask.shape, images.shape, strict=True))
    if not fits or mask.shape[1:-1] != images.shape[1:-1]:
        raise ConfigError(
            f"a mask of the shape {mask.shape} does not fit images of the shape {images.shape}: height and width must be the "
            "images' own, channels theirs or 1"
        )
    return mask


def after_each_step(solver: Solver, change: Callable[[Process, Data, jax.Array, Noise], jax.Array]) -> Solver:
    """A solver whose every step is followed by (process, x at s, s, noise) -> x at s."""

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[jax.Array, Any]:
        x, state = solver.step(denoiser, x, state, t, s, noise)
        return change(denoiser.process, x, s, noise), state

    return solver._replace(step=step)


def snapped(process: Process, t: float) -> float:
    """The time, or the nearest step of a chain."""
    return t if process.num_steps is None else float(np.round(t * process.num_steps) / process.num_steps)


def mixed(mask: jax.Array, kept: jax.Array, drawn: jax.Array) -> jax.Array:
    """`kept` where the mask is 1, to the last bit, and `drawn` where it is 0."""
    return jnp.where(mask == 1, kept, jnp.where(mask == 0, drawn, mask * kept + (1 - mask) * drawn))
