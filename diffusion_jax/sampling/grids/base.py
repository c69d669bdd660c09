"""The contract of a time grid, and what all grids share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process, gaussian
from diffusion_jax.process.types import Corruption

Grid = Callable[[Any], np.ndarray]
"""process -> float64 [N + 1], strictly descending, in [0, 1], the last 0."""


def closed(times: Any) -> np.ndarray:
    """Return the distinct positive times in descending order, and the final 0."""
    times = np.unique(np.asarray(times, np.float64))[::-1]
    return np.append(times[times > 0], 0.0)


def from_indices(process: Corruption, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the times of a chain's indices, and the final 0."""
    return closed((np.asarray(indices, np.float64) + 1) / process.num_steps)


def of_gaussian(name: str, process: Corruption) -> Process:
    """Return the process of a grid that is made of noise levels, or raise a `ConfigError`: it must be Gaussian."""
    return gaussian(process, f"grid {name!r}", "'uniform', 'leading' or 'trailing'")


def need_chain(name: str, process: Corruption, num_steps: int = 1) -> int:
    """Return the length of a chain, or raise a `ConfigError`: the process is continuous, or has fewer steps than asked for."""
    if process.num_steps is None:
        raise ConfigError(
            f"grid {name!r} picks indices of a discrete chain, but the process is continuous; "
            "use 'uniform', 'trailing', 'log_snr' or 'karras'"
        )
    if num_steps > process.num_steps:
        raise ConfigError(
            f"grid {name!r}: {num_steps} steps of a chain that has {process.num_steps}; use at most {process.num_steps}"
        )
    return process.num_steps


def top_level(process: Process) -> float:
    """Return the largest level sigma / alpha of a process, which is infinite at zero SNR."""
    return float(np.exp(-0.5 * process.schedule.log_snr(np.float64(1.0))))
