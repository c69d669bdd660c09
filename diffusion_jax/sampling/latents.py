"""Between images and noise, and between one noise and another: encoding, reconstruction, interpolation.

DDIM at eta = 0 makes of noise and images two names of the same thing. Functions over any `Denoiser`; none of them
draws noise unless it takes a key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.types import Data, Denoiser, expand
from diffusion_jax.rng import named
from diffusion_jax.sampling.grids import Grid
from diffusion_jax.sampling.loop import invert, sample, times_of
from diffusion_jax.sampling.solvers import Solver, ddim

Mix = Callable[[Data, Data, Any], jax.Array]
"""(first, second, share of the second) -> what lies between."""

# Below this sine of the angle the great circle is not told from the chord in float32.
_PARALLEL = 1e-3


def _check_pair(first: jax.Array, second: jax.Array) -> None:
    if first.shape != second.shape:
        raise ConfigError(f"interpolation needs two arrays of one shape, got {first.shape} and {second.shape}")


def lerp(first: Data, second: jax.Array, share: Any) -> jax.Array:
    """Return (1 - share) * first + share * second, [B, ...].

    Args:
      share: of the second; one number, or one per example [B].
    """
    _check_pair(first, second)
    share = expand(share, first)
    return (1 - share) * first + share * second


def slerp(first: Data, second: jax.Array, share: Any) -> jax.Array:
    """Interpolate each example, flattened, on a sphere: sin((1 - a) h) / sin h * first + sin(a h) / sin h * second.

    h is the angle between the two. Noises keep their length on the way, as a sample of the prior must; where they are
    parallel it is `lerp`.

    Args:
      first, second: [B, ...], such as two noises at t = 1.
      share: a, of the second; one number, or one per example [B].

    Raises:
      ConfigError: two shapes.

    Source: Song et al. 2021, appendix D.5 (arXiv 2010.02502).
    """
    _check_pair(first, second)
    flat = [x.reshape(x.shape[0], -1) for x in (first, second)]
    lengths = [jnp.linalg.norm(x, axis=-1) for x in flat]
    product = jnp.maximum(lengths[0] * lengths[1], jnp.finfo(first.dtype).tiny)
    cosine = jnp.clip((flat[0] * flat[1]).sum(-1) / product, -1.0, 1.0)
    angle, share = jnp.arccos(cosine), jnp.broadcast_to(jnp.asarray(share, first.dtype), cosine.shape)
    sine = jnp.sin(angle)
    apart = sine > _PARALLEL
    safe = jnp.where(apart, sine, 1.0)
    weights = [jnp.where(apart, jnp.sin(part * jnp.where(apart, angle, 0.0)) / safe, part) for part in (1.0 - share, share)]
    return expand(weights[0], first) * first + expand(weights[1], second) * second


def encode(denoiser: Denoiser, grid: Grid | Any, x0: Data) -> jax.Array:
    """Return the noise [B, ...] from which `decode` makes clean data x0 [B, ...] on the same grid: see `sample.invert`."""
    return invert(denoiser, grid, x0)


def decode(denoiser: Denoiser, grid: Grid | Any, noise: Data) -> jax.Array:
    """Return the data [B, ...] that DDIM at eta = 0 makes of noise [B, ...] at the grid's first time; nothing is drawn."""
    return sample(denoiser, ddim(), grid, jax.random.key(0), noise.shape, initial=noise)


def reconstruct(denoiser: Denoiser, grid: Grid | Any, x0: Data) -> tuple[jax.Array, jax.Array]:
    """Encode clean data and decode them again on one grid: (what came back, the noise between), both [B, ...].

    The error falls with the number of steps. Guided or thresholded denoisers are no flow, and do not return.

    Source: Song et al. 2021, section 5.4 (arXiv 2010.02502).
    """
    noise = encode(denoiser, grid, x0)
    return decode(denoiser, grid, noise), noise


def interpolate(
    denoiser: Denoiser, grid: Grid | Any, first: Data, second: jax.Array, shares: Sequence[float] | jax.Array, mix: Mix = slerp
) -> jax.Array:
    """Return what DDIM at eta = 0 makes of noises between two.

    Args:
      first, second: noises [B, ...] at the grid's first time; those of images come from `encode`.
      shares: of the second, [K].
      mix: `slerp`, or `lerp`.

    Returns:
      [K, B, ...].

    Source: Song et al. 2021, section 5.3 (arXiv 2010.02502).
    """
    _check_pair(first, second)
    shares = jnp.asarray(shares, first.dtype)
    return jax.lax.map(lambda share: decode(denoiser, grid, mix(first, second, share)), shares)


def interpolate_diffused(
    denoiser: Denoiser,
    solver: Solver,
    grid: Grid | Any,
    key: jax.Array,
    first: Data,
    second: jax.Array,
    shares: Sequence[float] | jax.Array,
    start: float = 0.5,
) -> jax.Array:
    """Make images between two by adding noise to both up to a time, mixing linearly there, and sampling back.

    A later `start` keeps less of the images: only coarse traits are mixed. Every share sees the same noise, that of the
    two images and that of the solver.

    Args:
      solver: DDPM's was ancestral, `solvers.ddpm()`.
      grid: the part of it that lies below `start` is walked.
      key: of all noise.
      first, second: clean data [B, ...].
      shares: of the second, [K].
      start: t in (0, 1].

    Returns:
      [K, B, ...].

    Raises:
      ConfigError: a start outside (0, 1] or below the grid's last step.

    Source: Ho et al. 2020, section 4.3 (arXiv 2006.11239), where start is 500 of 1000 steps.
    """
    _check_pair(first, second)
    times = times_of(grid, denoiser)
    times = times[times <= start + 1e-9]
    if not 0 < start <= 1 or len(times) < 2:
        raise ConfigError(f"interpolation: start must lie in (0, 1] and above the grid's last step, got {start}")
    process, t = denoiser.process, jnp.float32(times[0])
    noised = [
        process.diffuse(x0, t, jax.random.normal(named(key, "diffused", number), x0.shape))
        for number, x0 in enumerate((first, second))
    ]
    walk = lambda share: sample(  # noqa: E731
        denoiser, solver, times, named(key, "solver"), first.shape, initial=lerp(*noised, share)
    )
    return jax.lax.map(walk, jnp.asarray(shares, first.dtype))
