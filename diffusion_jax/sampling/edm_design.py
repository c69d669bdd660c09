"""The sampling half of EDM's design space: each column's time steps as a grid, and its solver, to be mixed freely.

The steps are noise levels sigma / alpha, whatever process the network was trained with; a process of discrete levels rounds
them to its own (`process.edm_design.iddpm_levels`).

Source: Karras et al. 2022, table 1 and appendix C (arXiv 2206.00364).
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process.edm_design import COLUMNS, iddpm_table, vp_constants
from diffusion_jax.process.schedules import vp_sde
from diffusion_jax.process.types import Corruption
from diffusion_jax.registry import part
from diffusion_jax.sampling.grids.base import Grid, of_gaussian, top_level
from diffusion_jax.values import Count, Natural, Positive, Range

Time = Annotated[float, Range(0, 1, open_low=True, open_high=True)]

_SAMPLERS: dict[str, dict[str, Any]] = {
    "vp": {"solver": {"name": "in_time", "schedule": {"name": "vp_sde"}}, "grid": {"name": "edm_vp"}},
    "ve": {"solver": {"name": "in_time", "schedule": {"name": "ve"}}, "grid": {"name": "edm_ve"}},
    "iddpm": {"solver": {"name": "euler"}, "grid": {"name": "edm_iddpm"}},
    "edm": {"solver": {"name": "heun", "space": "sigma"}, "grid": {"name": "karras", "sigma_min": 0.002, "sigma_max": 80.0}},
}


def column(name: str) -> dict[str, Any]:
    """Return how a column is sampled, as fields of `Sampling`: "solver" and "grid". Nothing is clipped.

    Args:
      name: "vp", "ve", "iddpm" or "edm".

    >>> column("edm")["solver"]["name"]
    'heun'
    """
    check_choice("the design table: column", name, COLUMNS)
    return {field: dict(part) for field, part in _SAMPLERS[name].items()} | {"threshold": "none"}


def _of_levels(name: str, levels: np.ndarray) -> Grid:
    """The grid of descending levels sigma / alpha, then 0."""

    def grid(process: Corruption) -> np.ndarray:
        schedule = of_gaussian(name, process).schedule
        largest = top_level(process)
        if levels[0] > largest * (1 + 1e-6):
            raise ConfigError(
                f"grid {name!r} starts at the level {levels[0]:g}, above {largest:g}, the largest level sigma / alpha of "
                f"the schedule {schedule.name!r}: set sigma_max"
            )
        times = np.unique(schedule.inverse(-2 * np.log(levels)))[::-1]  # rounded levels may meet
        return np.append(times[times > 0], 0.0)

    return grid


def _fractions(num_steps: int) -> np.ndarray:
    """0 to 1 in N steps."""
    return np.arange(num_steps) / max(num_steps - 1, 1)


def _check_range(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ConfigError(f"grid {name!r}: needs 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}")


@part("grid", "edm_vp")
def edm_vp(num_steps: Count, sigma_min: Positive | None = None, sigma_max: Positive | None = None, t_min: Time = 1e-3) -> Grid:
    """Visit the column VP: evenly spaced times of the VP SDE from 1 to t_min.

    Args:
      sigma_min, sigma_max: the levels at those ends; where one is given, the SDE's two constants are fitted to both, and
        its own levels, about 0.0105 and 152, stand for the other.
    """
    levels = np.exp(-0.5 * vp_sde().log_snr(np.array([t_min, 1.0])))
    low = levels[0] if sigma_min is None else sigma_min
    high = levels[1] if sigma_max is None else sigma_max
    _check_range("edm_vp", low, high)
    beta_min, beta_max = vp_constants(low, high, t_min).values()
    t = 1 + _fractions(num_steps) * (t_min - 1)
    return _of_levels("edm_vp", np.sqrt(np.expm1(0.5 * (beta_max - beta_min) * t**2 + beta_min * t)))


@part("grid", "edm_ve")
def edm_ve(num_steps: Count, sigma_min: Positive = 0.02, sigma_max: Positive = 100.0) -> Grid:
    """Visit the column VE: a geometric sequence of levels."""
    _check_range("edm_ve", sigma_min, sigma_max)
    return _of_levels("edm_ve", sigma_max * (sigma_min / sigma_max) ** _fractions(num_steps))


@part("grid", "edm_iddpm")
def edm_iddpm(num_steps: Count, first: Natural = 8, num_levels: Count = 1000) -> Grid:
    """Visit the column of improved DDPM: evenly spaced indices of its levels, rounded half up.

    Args:
      first: the index of the noisiest level visited; 8 is the level 80.2.
      num_levels: of the chain.
    """
    if first >= num_levels:
        raise ConfigError(f"grid 'edm_iddpm': first must lie in [0, {num_levels}), got {first}")
    indices = np.floor(first + (num_levels - 1 - first) * _fractions(num_steps) + 0.5).astype(int)
    return _of_levels("edm_iddpm", iddpm_table(num_levels)[indices])
