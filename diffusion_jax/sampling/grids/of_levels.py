"""Grids of noise levels, of log-SNRs and of times, whatever chain there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.types import Corruption
from diffusion_jax.registry import part
from diffusion_jax.sampling.grids.base import Grid, closed, of_gaussian, top_level
from diffusion_jax.values import Count, Positive, Range


@part("grid", "karras")
def karras(num_steps: Count, sigma_min: Positive | None = None, sigma_max: Positive | None = None, rho: Positive = 7.0) -> Grid:
    """Visit noise levels sigma / alpha evenly spaced in their 1/rho power, then 0 (Karras et al. 2022, arXiv 2206.00364).

    Args:
      sigma_min, sigma_max: the ends, by default the schedule's own range, within 0.002 and 80 where it is wider.
      rho: 1 is even in the level; larger takes smaller steps near the data.

    Raises:
      ConfigError: levels out of order, or (with the process) above the schedule's largest.
    """

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
        return closed(schedule.inverse(-2 * rho * np.log(ramp)))

    return grid


@part("grid", "log_snr")
def log_snr(num_steps: Count, lowest: float | None = None, highest: float | None = None) -> Grid:
    """Visit times evenly spaced in log-SNR, then 0, as DPM-Solver does for small images.

    Args:
      lowest, highest: the ends, by default the schedule's own range from t = 1 to a chain's first time (1/1000, or the
        schedule's earliest worth training on, in continuous time), within -20 and 20 where it is wider.

    Raises:
      ConfigError: ends out of order, or (with the process) below the schedule's log-SNR at t = 1.

    Source: Lu et al. 2022, section 3.4 (arXiv 2206.00927).
    """

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
        return closed(schedule.inverse(np.linspace(low, high, max(num_steps, 2))[:num_steps]))

    return grid


@part("grid", "levels")
def levels(levels: Sequence[Positive] | Positive) -> Grid:
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
        top = top_level(process)
        if given[0] > top * (1 + 1e-6):
            raise ConfigError(
                f"grid 'levels': {given[0]:g} lies above {top:g}, the largest level sigma / alpha of the schedule "
                f"{schedule.name!r}"
            )
        return np.append(schedule.inverse(-2 * np.log(given)), 0.0)

    return grid


@part("grid", "times")
def times(times: Sequence[Annotated[float, Range(0, 1)]]) -> Grid:
    """Visit given times, such as (1.0, 0.6, 0.3), and then 0, which may be among them.

    Args:
      times: descending, in [0, 1].

    Raises:
      ConfigError: times that do not descend.
    """
    given = np.asarray(times, np.float64)
    if given.ndim != 1 or not given.any() or (np.diff(given) >= 0).any() or given[0] > 1 or given[-1] < 0:
        raise ConfigError(f"grid 'times': needs times in descending order, from 1 to 0, got {times}")
    return lambda process: closed(given)


@part("grid", "flow")
def flow(
    num_steps: Count,
    shift: Positive = 1.0,
    tokens: Count | None = None,
    shifts: tuple[float, float] = (0.5, 1.15),
    train_steps: Count | None = None,
) -> Grid:
    """Visit sigma = shift u / (1 + (shift - 1) u) of flow matching, with u even from 1, and then 0.

    Sigmas are those of x_t = (1 - sigma) x0 + sigma eps, whatever shift the schedule has itself.

    Args:
      shift: above 1 takes more steps in noise; Stable Diffusion 3 has 3.
      tokens: of the image, from which the shift follows instead: its logarithm is linear in them (Flux's dynamic shift).
      shifts: that logarithm at 256 and at 4,096 tokens.
      train_steps: where u ends: at 1 / N (None; Flux), or as Stable Diffusion 3's scheduler has it: at 1 / train_steps, put
        through the shift itself unless that is dynamic.

    Raises:
      ConfigError: a shift beside tokens, or (with the process) a schedule that is no straight line.

    Source: Esser et al. 2024, section 5.3.2 (arXiv 2403.03206); Flux's published code for the dynamic shift.
    """
    if tokens is not None and shift != 1:
        raise ConfigError(f"grid 'flow': the shift {shift:g} and {tokens} tokens, from which it follows: give one of them")
    if tokens is not None:
        rise = (tokens - 256) / (4096 - 256)
        shift = math.exp(shifts[0] + rise * (shifts[1] - shifts[0]))

    def shifted(u: np.ndarray | float) -> np.ndarray | float:
        return shift * u / (1 + (shift - 1) * u)

    last = 1 / (train_steps or num_steps)
    last = shifted(last) if train_steps and tokens is None else last
    sigmas = shifted(np.linspace(1.0, last, num_steps))

    def grid(process: Corruption) -> np.ndarray:
        schedule = of_gaussian("flow", process).schedule
        if schedule.family != "linear":
            raise ConfigError(
                f"grid 'flow' is of flow matching, where alpha + sigma = 1, and the schedule {schedule.name!r} is not: "
                "use 'karras', 'log_snr' or 'trailing'"
            )
        with np.errstate(divide="ignore"):
            return closed(schedule.inverse(2 * (np.log1p(-sigmas) - np.log(sigmas))))

    return grid
