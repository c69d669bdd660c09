"""Few-step sampling of consistency models: jump to data, return to a smaller noise level, jump again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.types import Corruption, Data, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.grids import Grid, of_gaussian
from diffusion_jax.sampling.solvers import Noise, Solver


@register("solver", "consistency")
def consistency(sigma_min: float = 0.002) -> Solver:
    """x_s = alpha_s (x0 + sqrt(level_s^2 - sigma_min^2) z), with fresh noise z; the prediction itself at s = 0.

    One evaluation a step; a grid of one step is one jump from noise to data.

    Args:
      sigma_min: the level sigma / alpha of what the model returns, whose noise is already in it.

    Source: Song et al. 2023, algorithm 1 (arXiv 2303.01469).
    """
    if sigma_min < 0:
        raise ConfigError(f"solver 'consistency': sigma_min must not be negative, got {sigma_min}")

    def init(x: jax.Array, num_steps: int) -> tuple[()]:
        return ()

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        x0 = denoiser(x, t).x0
        alpha, sigma = denoiser.process.alpha_sigma(s)
        spread = jnp.sqrt(jnp.maximum(sigma**2 - (alpha * sigma_min) ** 2, 0.0))
        return alpha * x0 + spread * noise("step"), state

    return Solver(init, step)


@register("grid", "levels")
def levels(levels: Sequence[float]) -> Grid:
    """The times of given noise levels sigma / alpha, such as (80.0, 0.661), and then 0.

    Args:
      levels: descending, positive; as many evaluations as levels.

    Raises:
      ConfigError: levels that do not descend, or (with the process) above the schedule's largest.
    """
    given = np.atleast_1d(np.asarray(levels, np.float64))
    if given.ndim != 1 or not given.size or (given <= 0).any() or (np.diff(given) >= 0).any():
        raise ConfigError(f"grid 'levels': needs positive noise levels in descending order, got {levels}")

    def grid(process: Corruption) -> np.ndarray:
        schedule = of_gaussian("levels", process).schedule
        top = float(np.exp(-0.5 * schedule.log_snr(1.0)))
        if given[0] > top * (1 + 1e-6):
            raise ConfigError(
                f"grid 'levels': {given[0]:g} lies above {top:g}, the largest level sigma / alpha of the schedule "
                f"{schedule.name!r}"
            )
        return np.append(schedule.inverse(-2 * np.log(given)), 0.0)

    return grid
