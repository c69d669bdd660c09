"""Editing images with a model that was trained for nothing but to draw them: functions over a `Denoiser` and a `Solver`.

SDEdit, ILVR and RePaint; interpolation between images is in `sampling.latents`. Each is one scan, forward only, and can be
jitted; image i is a function of (key, `indices[i]`) and what it is given alone.
"""

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
from diffusion_jax.sampling.grids import Grid
from diffusion_jax.sampling.loop import initial_noise, sample, sample_keys, times_of
from diffusion_jax.sampling.solvers import Noise, Solver


def normal(keys: jax.Array, images: jax.Array, *names: Any) -> jax.Array:
    """Draw standard normal noise shaped like the images, of each image's key and the names."""
    draw = lambda key: jax.random.normal(named(key, *names), images.shape[1:], images.dtype)  # noqa: E731
    return jax.vmap(draw)(keys)


def checked_mask(mask: Any, images: jax.Array) -> jax.Array:
    """Return a mask in the images' dtype, that broadcasts against them.

    Args:
      mask: [B, ...] or [...] with as many axes as the images, or as one image; 1 is to be filled, 0 is kept.

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
    """Return a solver whose every step is followed by (process, x at s, s, noise) -> x at s."""

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[jax.Array, Any]:
        x, state = solver.step(denoiser, x, state, t, s, noise)
        return change(denoiser.process, x, s, noise), state

    return solver._replace(step=step)


def snapped(process: Process, t: float) -> float:
    """Return the time, or the nearest step of a chain."""
    return t if process.num_steps is None else float(np.round(t * process.num_steps) / process.num_steps)


def mixed(mask: jax.Array, kept: jax.Array, drawn: jax.Array) -> jax.Array:
    """Return `kept` where the mask is 0, to the last bit, and `drawn` where it is 1."""
    return jnp.where(mask == 0, kept, jnp.where(mask == 1, drawn, (1 - mask) * kept + mask * drawn))


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
      mask: 1 where the guide may change, and 0 where it is kept, exactly, [B, ...] or [...]; after every step the kept
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
        n = normal(sample_keys(again, len(guide), indices), guide, "guide")
        held = solver if mask is None else _keeping(solver, guide, mask, n)
        begun = denoiser.process.diffuse(x, jnp.float32(start), n)
        x = sample(denoiser, held, times, named(again, "solver"), guide.shape, indices=indices, initial=begun)
    return x


def _keeping(solver: Solver, guide: Data, mask: jax.Array, n: Data) -> Solver:
    """A solver that puts the kept part back after each step, with the one noise that the chain began with."""

    def change(process: Process, x: Data, s: jax.Array, noise: Any) -> jax.Array:
        return mixed(mask, process.diffuse(guide, s, n), x)

    return after_each_step(solver, change)


def low_pass(images: jax.Array, factor: int) -> jax.Array:
    """Shrink N times and enlarge again (phi_N), with a cubic kernel that is widened where it shrinks (anti-aliasing).

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


def visits(count: int, jump: int = 10, resamples: int = 10) -> list[int]:
    """Return the indices of `count` steps in the order in which they are visited, from count - 1 to -1, which is data.

    Where the index is a multiple of `jump`, up to the last from which a jump stays inside, the walk returns `jump` indices
    towards noise, resamples - 1 times.

    >>> visits(4, jump=2, resamples=2)
    [3, 2, 1, 0, 1, 2, 1, 0, -1]
    >>> len(visits(250))
    4571

    Raises:
      ConfigError: numbers below 1.

    Source: Lugmayr et al. 2022, section 4.2 and appendix B (arXiv 2201.09865).
    """
    if count < 1 or jump < 1 or resamples < 1:
        raise ConfigError(f"repaint: steps, jump and resamples must be at least 1, got {count}, {jump} and {resamples}")
    left = {place: resamples - 1 for place in range(0, count - jump, jump)}
    order, index = [], count
    while index > 0:
        index -= 1
        order.append(index)
        if left.get(index, 0):
            left[index] -= 1
            order += range(index + 1, index + jump + 1)
            index += jump
    return [*order, -1]


def repaint(
    denoiser: Denoiser,
    solver: Solver,
    grid: Grid | Any,
    key: jax.Array,
    image: Data,
    mask: Any,
    jump: int = 10,
    resamples: int = 10,
    *,
    indices: Any = None,
) -> jax.Array:
    """Draw what is missing of images; what is known is returned exactly.

    A step to s takes the known part from q(x_s | image) and the rest from the solver. As the two are drawn apart they do
    not agree: so the walk returns towards noise by x_t = (alpha_t / alpha_s) x_s + noise and comes back, again and again.

    Args:
      solver: DDPM's, or any other; one that remembers earlier steps forgets them at each return.
      grid: of N steps; the paper's has 250 of a chain of 1000.
      image: [B, ...], float; what it holds where the mask is 1 does not matter.
      mask: 1 is to be filled, 0 is known; [B, ...] or [...], channels the image's or 1.
      jump: how many steps each return goes back: j.
      resamples: how often each stretch is walked: r. 1 is plain replacement, which costs N evaluations, and fills in what
        fits locally; with j = r = 10, 250 steps cost 2,410.
      indices: int [B]; image i's noise is a function of (key, indices[i]).

    Returns:
      [B, ...] float, not clipped.

    Raises:
      ConfigError: a mask of another size, numbers below 1, a process that the solver cannot serve.

    Source: Lugmayr et al. 2022, algorithm 1 (arXiv 2201.09865).
    """
    mask, process = checked_mask(mask, image), denoiser.process
    times = times_of(grid, denoiser)
    solver.check(process, times)
    count = len(times) - 1
    order = np.array(visits(count, jump, resamples))
    keys = sample_keys(key, len(image), indices)
    fresh = initial_noise(process, keys, times[0], image.shape)
    dtype = fresh.dtype

    def towards_data(x: Data, state: Any, number: Any, t: Any, s: Any) -> tuple[jax.Array, Any]:
        x, state = solver.step(denoiser, x, state, t, s, lambda name: normal(keys, image, name, number))
        known = process.diffuse(image, s, normal(keys, image, "known", number))
        return mixed(mask, known, x).astype(dtype), state

    def towards_noise(x: Data, state: Any, number: Any, s: Any, t: Any) -> tuple[jax.Array, Any]:
        x = forward(process, x, s, t, normal(keys, image, "return", number))
        return x.astype(dtype), solver.init(x.astype(dtype), count)

    def step(carry: Any, inputs: Any) -> Any:
        number, now, then, down = inputs
        return jax.lax.cond(down, towards_data, towards_noise, *carry, number, now, then), None

    visited = jnp.asarray(times[count - 1 - order], dtype)  # index i of N is the time i + 1 from the end of the grid
    steps = (jnp.arange(len(order) - 1), visited[:-1], visited[1:], jnp.asarray(np.diff(order) < 0))
    (x, _), _ = jax.lax.scan(step, (fresh, solver.init(fresh, count)), steps)
    return x


def forward(process: Process, x: Data, s: Any, t: Any, noise: Data) -> jax.Array:
    """Return a draw of q(x_t | x_s) for scalar times s < t, in any family of processes."""
    alpha_s, _ = process.alpha_sigma(s)
    alpha_t, sigma_t = process.alpha_sigma(t)
    return alpha_t / alpha_s * x + sigma_t * jnp.sqrt(-jnp.expm1(-process.drop(s, t))) * noise
