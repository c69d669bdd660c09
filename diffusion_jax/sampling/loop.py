"""The sampling loop: one scan over a time grid, with noise that belongs to each sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import gaussian
from diffusion_jax.process.types import Corruption, Denoiser
from diffusion_jax.rng import named
from diffusion_jax.sampling.grids import Grid
from diffusion_jax.sampling.solvers import Draw, Solver, ddim


def sample_keys(key: jax.Array, count: int, indices: Any = None) -> jax.Array:
    """Return the key of each of `count` samples, folded from its index: 0 to count - 1 by default.

    Raises:
      ConfigError: indices of another shape than [count].
    """
    indices = jnp.arange(count) if indices is None else jnp.asarray(indices)
    if indices.shape != (count,):
        raise ConfigError(f"{count} samples need indices of the shape ({count},), got {indices.shape}")
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def initial_noise(process: Corruption, keys: jax.Array, t: float, shape: tuple[int, ...]) -> jax.Array:
    """Draw each sample's start at the first time from the process's prior, with the sample's own key; [B, ...]."""
    return jax.vmap(lambda key: process.prior(named(key, "initial"), shape[1:], t))(keys)


def times_of(grid: Grid | Any, denoiser: Denoiser, end: float = 0.0) -> np.ndarray:
    """Return the times of a run, float64, descending; `end` replaces the times below it."""
    times = np.asarray(grid(denoiser.process) if callable(grid) else grid, np.float64)
    if end > 0:
        times = np.append(times[times > end], end)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) < 0).all() or times[0] > 1 or times[-1] < 0:
        raise ConfigError(f"a time grid must descend within [0, 1] and have two times at least, got {times}")
    return times


def sample(
    denoiser: Denoiser,
    solver: Solver,
    grid: Grid | Any,
    key: jax.Array,
    shape: tuple[int, ...],
    *,
    indices: Any = None,
    initial: jax.Array | None = None,
    noise: Mapping[str, Any] | None = None,
    trajectory: bool = False,
    end: float = 0.0,
) -> Any:
    """Draw samples: from the process's prior at the grid's first time, along the grid, to data.

    N steps cost N evaluations of the denoiser, or as many as the solver says. Jit-able with the parameters bound inside the
    function; the grid is static. One `lax.scan`, forward only.

    Args:
      denoiser: bound to its conditioning for the whole batch.
      solver: such as `solvers.dpmpp_2m()`.
      grid: a grid such as `grids.karras(20)`, or descending times [N + 1].
      key: of the run. Sample i's noise comes from fold_in(key, indices[i]): the same sample whatever the batch size,
        the number of devices or the place in the batch.
      shape: (B, ...), such as (B, H, W, C).
      indices: int [B], 0..B-1 by default.
      initial: x at the grid's first time, [B, ...] of any floating dtype, which is then that of the whole run; drawn from the
        prior by default.
      noise: the numbers that the solver draws in its N steps, by their names, such as {"step": [N, B, ...]}, in place of
        draws with the key. `ddpm`, `ddim` and most others draw "step", churn "churn", and a solver that is given too few
        or too many of them says which it draws.
      trajectory: also return x at every time.
      end: stop at this time instead of 0, noise included.

    Returns:
      x [B, ...] of the dtype of `initial` or of the prior (of a Gaussian float32, and float64 under `jax.enable_x64`), not
      clipped; with `trajectory`, (x, [N + 1, B, ...]), the first being the noise.

    Raises:
      ConfigError: a grid that does not descend within [0, 1], a process that the solver does not serve, `indices`,
        `initial` or `noise` of another shape, or noise of other names than the solver draws.

    >>> from diffusion_jax.process import Denoised, Process
    >>> from diffusion_jax.sampling import grids, solvers
    >>> ones = lambda x_t, t: Denoised(x0=0 * x_t + 1, eps=x_t)  # all data are 1
    >>> denoiser = Denoiser(ones, Process("straight_line", "velocity"))
    >>> sample(denoiser, solvers.euler(), grids.uniform(4), jax.random.key(0), (1, 2)).tolist()
    [[1.0, 1.0]]
    """
    times = times_of(grid, denoiser, end)
    solver.check(denoiser.process, times)
    keys = sample_keys(key, shape[0], indices)
    if initial is not None and initial.shape != tuple(shape):
        raise ConfigError(f"sample: initial has the shape {initial.shape}, not {tuple(shape)}")
    x = initial_noise(denoiser.process, keys, times[0], shape) if initial is None else initial
    dtype, count = x.dtype, len(times) - 1
    real = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    given = None if noise is None else {name: jnp.asarray(values, real) for name, values in noise.items()}
    drawn: set[str] = set()

    def step(carry: Any, inputs: Any) -> Any:
        (x, state), (number, t, s, here) = carry, inputs

        def draws(name: str, draw: Draw = jax.random.normal, shape: tuple[int, ...] = tuple(shape[1:])) -> jax.Array:
            drawn.add(name)
            if here is not None:
                return _given(here, name, (len(keys), *shape))
            return jax.vmap(lambda k: draw(named(k, name, number), shape, real))(keys)

        x, state = solver.step(denoiser, x, state, t, s, draws)
        return (x.astype(dtype), state), (x.astype(dtype) if trajectory else None)

    _check_count(given, count)
    steps = (jnp.arange(count), jnp.asarray(times[:-1], real), jnp.asarray(times[1:], real), given)
    (final, _), visited = jax.lax.scan(step, (x, solver.init(x, count)), steps)
    if given is not None and set(given) - drawn:
        raise ConfigError(f"sample: the solver draws no noise {_listed(set(given) - drawn)} (it draws {_listed(drawn)})")
    return (final, jnp.concatenate([x[None], visited])) if trajectory else final


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"


def _check_count(given: Mapping[str, jax.Array] | None, count: int) -> None:
    """Raise a `ConfigError` unless there is noise for each step."""
    for name, values in (given or {}).items():
        if values.ndim < 2 or len(values) != count:
            raise ConfigError(f"sample: the noise {name!r} of {count} steps must be [{count}, B, ...], got {values.shape}")


def _given(noise: Mapping[str, jax.Array], name: str, shape: tuple[int, ...]) -> jax.Array:
    """Return the noise of one step that a solver draws by a name, of which the shape is known."""
    if name not in noise:
        raise ConfigError(f"sample: the solver draws the noise {name!r}, which is not given (given: {_listed(noise)})")
    if noise[name].shape != shape:
        raise ConfigError(f"sample: the noise {name!r} of a step must be of the shape {shape}, got {noise[name].shape}")
    return noise[name]


def invert(denoiser: Denoiser, grid: Grid | Any, x0: jax.Array) -> jax.Array:
    """Encode clean data into the noise from which DDIM at eta = 0 decodes it, on the same grid.

    Each step uses the prediction at the time it leaves; the first, which leaves data, uses the prediction at the time
    it reaches. The reconstruction error falls with the number of steps.

    Args:
      x0: clean data [B, ...].

    Returns:
      x at the grid's first (noisiest) time, [B, ...].

    Source: Song et al. 2021, section 4.3 (arXiv 2010.02502).
    """
    gaussian(denoiser.process, "DDIM's inversion", "sample alone")
    times = times_of(grid, denoiser)[::-1]
    alpha, sigma = denoiser.process.alpha_sigma(jnp.asarray(times[1], x0.dtype))
    x = alpha * x0 + sigma * denoiser(x0, jnp.asarray(times[1], x0.dtype)).eps
    solver = ddim(0.0)

    def step(x: jax.Array, pair: Any) -> Any:
        return solver.step(denoiser, x, (), *pair, lambda name: jnp.zeros_like(x))[0].astype(x.dtype), None

    pairs = (jnp.asarray(times[1:-1], x0.dtype), jnp.asarray(times[2:], x0.dtype))
    return jax.lax.scan(step, x, pairs)[0]
