"""Time grids: the descending times that a sampler visits, from noise to exactly 0.

A grid is a function of the process, so that one name serves discrete chains and continuous time. Discrete indices i of T
are the times (i + 1) / T; in continuous time the same rules run on [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process, gaussian
from diffusion_jax.process.types import Corruption
from diffusion_jax.registry import register

Grid = Callable[[Any], np.ndarray]
"""process -> float64 [N + 1], strictly descending, in [0, 1], the last 0."""


def _closed(times: Any) -> np.ndarray:
    """Descending distinct times with the final 0."""
    times = np.unique(np.asarray(times, np.float64))[::-1]
    return np.append(times[times > 0], 0.0)


def _from_indices(process: Corruption, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    return _closed((np.asarray(indices, np.float64) + 1) / process.num_steps)


def of_gaussian(name: str, process: Corruption) -> Process:
    """Return the process of a grid that is made of noise levels, or raise a `ConfigError`: it must be Gaussian."""
    return gaussian(process, f"grid {name!r}", "'uniform', 'leading' or 'trailing'")


def _check_steps(name: str, num_steps: int, limit: int | None = None, least: int = 1) -> None:
    if num_steps < least:
        raise ConfigError(f"grid {name!r}: num_steps must be at least {least}, got {num_steps}")
    if limit is not None and num_steps > limit:
        raise ConfigError(f"grid {name!r}: {num_steps} steps of a chain that has {limit}; use at most {limit}")


def _need_chain(name: str, process: Corruption) -> int:
    if process.num_steps is None:
        raise ConfigError(
            f"grid {name!r} picks indices of a discrete chain, but the process is continuous; "
            "use 'uniform', 'trailing', 'log_snr' or 'karras'"
        )
    return process.num_steps


@register("grid", "uniform")
def uniform(num_steps: int) -> Grid:
    """Visit times evenly spaced from the last to the first: 1, ..., 1/N, 0 in continuous time.

    On a chain, indices evenly spaced from T - 1 to 0, both included, rounded to even: what respacing "N" gives
    (except that one step starts at T - 1, not at 0).
    """
    _check_steps("uniform", num_steps)

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None or num_steps == 1:
            return np.linspace(1.0, 0.0, num_steps + 1)
        _check_steps("uniform", num_steps, process.num_steps)
        return _from_indices(process, _evenly(num_steps, process.num_steps))

    return grid


@register("grid", "leading")
def leading(num_steps: int, offset: int = 0) -> Grid:
    """Visit indices 0, c, 2c, ... with c = T // N: the last index is not visited (Song et al. 2021, arXiv 2010.02502).

    In continuous time, evenly spaced from 1 - 1 / N to 0. Needs two steps: one would start at the data's end.

    Args:
      offset: added to every index of a chain; latent diffusion has 1 (Rombach et al. 2022, arXiv 2112.10752).
    """
    _check_steps("leading", num_steps, least=2)
    if offset < 0:
        raise ConfigError(f"grid 'leading': offset must not be negative, got {offset}")

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None:
            return np.linspace(1.0 - 1.0 / num_steps, 0.0, num_steps + 1)
        _check_steps("leading", num_steps, process.num_steps)
        stride = process.num_steps // num_steps
        last = (num_steps - 1) * stride + offset
        if last >= process.num_steps:
            raise ConfigError(
                f"grid 'leading': the offset {offset} takes the last index to {last}, of a chain of {process.num_steps}"
            )
        return _from_indices(process, np.arange(num_steps) * stride + offset)

    return grid


@register("grid", "trailing")
def trailing(num_steps: int) -> Grid:
    """Visit indices round(T - k T / N) - 1: starts at the last index, as zero terminal SNR needs (arXiv 2305.08891)."""
    _check_steps("trailing", num_steps)

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None:
            return np.linspace(1.0, 0.0, num_steps + 1)
        _check_steps("trailing", num_steps, process.num_steps)
        steps = process.num_steps
        return _from_indices(process, np.round(steps - np.arange(num_steps) * steps / num_steps) - 1)

    return grid


@register("grid", "quadratic")
def quadratic(num_steps: int) -> Grid:
    """Visit indices floor(linspace(0, sqrt(0.8 T), N)^2), duplicates left out (Song et al. 2021, arXiv 2010.02502).

    In continuous time, 0.8 * (k / N)^2: most steps near the data. Needs two steps, as `leading` does.
    """
    _check_steps("quadratic", num_steps, least=2)

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None:
            return _closed(0.8 * (np.arange(1, num_steps + 1) / num_steps) ** 2)
        _check_steps("quadratic", num_steps, process.num_steps)
        roots = np.linspace(0, np.sqrt(0.8 * process.num_steps), num_steps)
        return _from_indices(process, np.floor(roots**2 + 1e-9))

    return grid


@register("grid", "karras")
def karras(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 7.0) -> Grid:
    """Visit noise levels sigma / alpha evenly spaced in their 1/rho power, then 0 (Karras et al. 2022, arXiv 2206.00364).

    Args:
      sigma_min, sigma_max: the ends, by default the schedule's own range, within 0.002 and 80 where it is wider.
      rho: 1 is even in the level; larger takes smaller steps near the data.

    Raises:
      ConfigError: levels out of order, or (with the process) above the schedule's largest.
    """
    _check_steps("karras", num_steps)
    if rho <= 0:
        raise ConfigError(f"grid 'karras': rho must be positive, got {rho}")

    def grid(process: Corruption) -> np.ndarray:
        schedule = of_gaussian("karras", process).schedule

        def level(t: float) -> float:
            return float(np.exp(-0.5 * schedule.log_snr(t)))

        first = 1 / process.num_steps if process.num_steps else 1e-4
        low = sigma_min if sigma_min is not None else max(level(first), 0.002)
        high = sigma_max if sigma_max is not None else min(level(1.0), 80.0)
        if not 0 < low < high:
            raise ConfigError(f"grid 'karras': needs 0 < sigma_min < sigma_max, got {low:g} and {high:g}")
        if high > level(1.0) * (1 + 1e-6):
            raise ConfigError(
                f"grid 'karras': sigma_max {high:g} lies above {level(1.0):g}, the largest level sigma / alpha of the "
                f"schedule {schedule.name!r}"
            )
        ramp = np.linspace(high ** (1 / rho), low ** (1 / rho), max(num_steps, 2))[:num_steps]
        return _closed(schedule.inverse(-2 * rho * np.log(ramp)))

    return grid


@register("grid", "log_snr")
def log_snr(num_steps: int, lowest: float | None = None, highest: float | None = None) -> Grid:
    """Visit times evenly spaced in log-SNR, then 0, as DPM-Solver does for small images.

    Args:
      lowest, highest: the ends, by default the schedule's own range from t = 1 to a chain's first time (1/1000, or the
        schedule's earliest worth training on, in continuous time), within -20 and 20 where it is wider.

    Raises:
      ConfigError: ends out of order, or (with the process) below the schedule's log-SNR at t = 1.

    Source: Lu et al. 2022, section 3.4 (arXiv 2206.00927).
    """
    _check_steps("log_snr", num_steps)

    def grid(process: Corruption) -> np.ndarray:
        schedule = of_gaussian("log_snr", process).schedule
        first = 1 / process.num_steps if process.num_steps else max(schedule.t_min, 1e-3)
        bottom = float(schedule.log_snr(1.0))
        low = lowest if lowest is not None else max(bottom, -20.0)
        high = highest if highest is not None else min(float(schedule.log_snr(first)), 20.0)
        if not low < high:
            raise ConfigError(f"grid 'log_snr': needs lowest < highest, got {low:g} and {high:g}")
        if low < bottom - 1e-6:
            raise ConfigError(
                f"grid 'log_snr': lowest {low:g} lies below {bottom:g}, where the schedule {schedule.name!r} ends"
            )
        return _closed(schedule.inverse(np.linspace(low, high, max(num_steps, 2))[:num_steps]))

    return grid


@register("grid", "respaced")
def respaced(spacing: str) -> Grid:
    """Read a respacing string: "25", "10,10,10" (counts for equal sections of the chain, from data to noise), or "ddim25".

    "ddimN" is the smallest stride that visits N indices, starting at 0.

    Raises:
      ConfigError: a string of another form; with the process, more steps than the chain or a section has, or no stride.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), Dhariwal & Nichol 2021 (arXiv 2105.05233).

    >>> from diffusion_jax.process import Process, schedules
    >>> chain = Process(schedules.linear())
    >>> [round(1000 * t) - 1 for t in respaced("ddim5")(chain)[:-1]]
    [800, 600, 400, 200, 0]
    """
    text = str(spacing).replace(" ", "")
    is_ddim = text.startswith("ddim")
    counts = text.removeprefix("ddim").split(",")
    if not all(count.isdecimal() and int(count) > 0 for count in counts) or (is_ddim and len(counts) > 1):
        raise ConfigError(f"grid 'respaced': cannot read {spacing!r}; write '25', '10,10,10' or 'ddim25'")

    def grid(process: Corruption) -> np.ndarray:
        steps = _need_chain("respaced", process)
        indices = _strided(int(counts[0]), steps) if is_ddim else _sections([int(count) for count in counts], steps)
        return _from_indices(process, indices)

    return grid


def _strided(count: int, steps: int) -> list[int]:
    for stride in range(1, steps + 1):
        if len(range(0, steps, stride)) == count:
            return list(range(0, steps, stride))
    raise ConfigError(f"grid 'respaced': no integer stride visits {count} of {steps} indices, as 'ddim{count}' asks")


def _sections(counts: list[int], steps: int) -> list[int]:
    """Indices spaced evenly within each of len(counts) sections; the first sections take the remainder."""
    size, extra = divmod(steps, len(counts))
    indices: list[int] = []
    start = 0
    for number, count in enumerate(counts):
        length = size + (number < extra)
        if count > length:
            raise ConfigError(f"grid 'respaced': {count} steps of a section that has {length}")
        indices += [start + index for index in _evenly(count, length)]
        start += length
    return indices


def _evenly(count: int, length: int) -> list[int]:
    """`count` indices of 0..length - 1 with both ends, rounded to even; the one of count 1 is 0.

    The stride is summed, not multiplied: published chains carry that rounding, which decides ties.
    """
    stride = (length - 1) / (count - 1) if count > 1 else 0.0
    return [round(offset) for offset in itertools.accumulate([stride] * (count - 1), initial=0.0)]


@register("grid", "levels")
def levels(levels: Sequence[float]) -> Grid:
    """Visit given noise levels sigma / alpha, such as (80.0, 0.661), and then 0.

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
