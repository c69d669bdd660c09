"""RePaint: what is missing drawn around what is known, going back and forth in time so that the two agree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.sampling.editing.common import checked_mask, keys_of, mixed, normal
from diffusion_jax.sampling.grids import Grid
from diffusion_jax.sampling.sample import initial_noise, times_of
from diffusion_jax.sampling.solvers import Solver


def visits(count: int, jump: int = 10, resamples: int = 10) -> list[int]:
    """The indices of `count` steps in the order in which they are visited, from count - 1 to -1, which is data.

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
      image: [B, ...], float; what it holds where the mask is 0 does not matter.
      mask: 1 is known, 0 is drawn; [B, ...] or [...], channels the image's or 1.
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
    keys = keys_of(key, image, indices)
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
    """A draw of q(x_t | x_s) for scalar times s < t, in any family of processes."""
    alpha_s, _ = process.alpha_sigma(s)
    alpha_t, sigma_t = process.alpha_sigma(t)
    return alpha_t / alpha_s * x + sigma_t * jnp.sqrt(-jnp.expm1(process.log_snr(t) - process.log_snr(s))) * noise
