"""Grids that pick indices of a chain, and what the same rules are in continuous time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.types import Corruption
from diffusion_jax.registry import part
from diffusion_jax.sampling.grids.base import Grid, closed, from_indices, need_chain
from diffusion_jax.values import Count, Natural, Range

Several = Annotated[int, Range(2)]


@part("grid", "uniform")
def uniform(num_steps: Count) -> Grid:
    """Visit times evenly spaced from the last to the first: 1, ..., 1/N, 0 in continuous time.

    On a chain, indices evenly spaced from T - 1 to 0, both included, rounded to even: what respacing "N" gives
    (except that one step starts at T - 1, not at 0).
    """

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None or num_steps == 1:
            return np.linspace(1.0, 0.0, num_steps + 1)
        return from_indices(process, _evenly(num_steps, need_chain("uniform", process, num_steps)))

    return grid


@part("grid", "leading")
def leading(num_steps: Several, offset: Natural = 0) -> Grid:
    """Visit indices 0, c, 2c, ... with c = T // N: the last index is not visited (Song et al. 2021, arXiv 2010.02502).

    In continuous time, evenly spaced from 1 - 1 / N to 0. Needs two steps: one would start at the data's end.

    Args:
      offset: added to every index of a chain; latent diffusion has 1 (Rombach et al. 2022, arXiv 2112.10752).
    """

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None:
            return np.linspace(1.0 - 1.0 / num_steps, 0.0, num_steps + 1)
        stride = need_chain("leading", process, num_steps) // num_steps
        return _offset("leading", process, np.arange(num_steps) * stride, offset)

    return grid


@part("grid", "trailing")
def trailing(num_steps: Count) -> Grid:
    """Visit indices round(T - k T / N) - 1: starts at the last index, as zero terminal SNR needs (arXiv 2305.08891)."""

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None:
            return np.linspace(1.0, 0.0, num_steps + 1)
        steps = need_chain("trailing", process, num_steps)
        return from_indices(process, np.round(steps - np.arange(num_steps) * steps / num_steps) - 1)

    return grid


@part("grid", "quadratic")
def quadratic(num_steps: Several) -> Grid:
    """Visit indices floor(linspace(0, sqrt(0.8 T), N)^2), duplicates left out (Song et al. 2021, arXiv 2010.02502).

    In continuous time, 0.8 * (k / N)^2: most steps near the data. Needs two steps, as `leading` does.
    """

    def grid(process: Corruption) -> np.ndarray:
        if process.num_steps is None:
            return closed(0.8 * (np.arange(1, num_steps + 1) / num_steps) ** 2)
        roots = np.linspace(0, np.sqrt(0.8 * need_chain("quadratic", process, num_steps)), num_steps)
        return from_indices(process, np.floor(roots**2 + 1e-9))

    return grid


def _offset(name: str, process: Corruption, indices: np.ndarray, offset: int) -> np.ndarray:
    """The times of ascending indices, all of them raised."""
    last = int(indices[-1]) + offset
    if last >= process.num_steps:
        raise ConfigError(
            f"grid {name!r}: the offset {offset} takes the last index to {last}, of a chain of {process.num_steps}"
        )
    return from_indices(process, indices + offset)


@part("grid", "dpm_solver")
def dpm_solver(
    num_steps: Count, spacing: Literal["time_uniform", "time_quadratic", "leading"] = "time_uniform", offset: Natural = 0
) -> Grid:
    """Visit the first N of N + 1 times as published DPM-Solver spaces them; in place of the last, the first index, is 0.

    On a chain: "time_uniform" has indices even from T - 1 to 0, rounded to even (the `linspace` of public libraries'
    DPM-Solver, UniPC and DEIS), "leading" 0, c, 2c, ... with c = T // (N + 1), and "time_quadratic" times even in their square
    root; of indices that meet, one is visited. In continuous time the last of the N + 1 is 0.001, and 0 where "leading".

    Args:
      offset: added to every index of a chain where "leading".

    Source: Lu et al. 2022, section 4 and appendix D.3 (arXiv 2206.00927), and their published code.
    """

    def grid(process: Corruption) -> np.ndarray:
        chain, count = process.num_steps, num_steps + 1
        earliest = 1e-3 if chain is None else 1 / need_chain("dpm_solver", process, count)
        if spacing == "leading":
            if chain is None:
                return np.linspace(1.0, 0.0, count + 1)[1:]
            return _offset("dpm_solver", process, np.arange(1, count) * (chain // count), offset)
        power = 2 if spacing == "time_quadratic" else 1
        times = np.linspace(1.0, earliest ** (1 / power), count)[:-1] ** power
        if chain is None:
            return closed(times)
        if spacing == "time_uniform":
            return from_indices(process, np.linspace(0, chain - 1, count).round()[1:])
        return from_indices(process, (times * chain - 1).round())

    return grid


@part("grid", "lcm")
def lcm(num_steps: Count, original_steps: Count = 50) -> Grid:
    """Visit N of the times at which a latent consistency model was distilled, from noise, skipping evenly, rounded down.

    Those are the indices k - 1, 2k - 1, ... with k = T // original_steps; in continuous time even in t. Networks of
    trajectory consistency distillation (`tcd`) are run on the same.

    Args:
      original_steps: of the distillation, as many as N at least.

    Source: Luo et al. 2023, section 4.3 (arXiv 2310.04378), and their published code.
    """
    if num_steps > original_steps:
        raise ConfigError(f"grid 'lcm': {num_steps} steps of {original_steps} original ones: use fewer, or set original_steps")

    def grid(process: Corruption) -> np.ndarray:
        chosen = original_steps - np.floor(np.linspace(0, original_steps, num_steps, endpoint=False))
        if process.num_steps is None:
            return closed(chosen / original_steps)
        return from_indices(process, chosen * (need_chain("lcm", process, original_steps) // original_steps) - 1)

    return grid


@part("grid", "indices")
def indices(indices: Sequence[Natural]) -> Grid:
    """Visit given indices of a chain, such as (999, 759, 499, 259), and then the data.

    Args:
      indices: descending, from 0; as many steps as indices.

    Raises:
      ConfigError: indices that do not descend, or (with the process) beyond the chain's last.
    """
    given = np.asarray(indices, np.float64)
    if given.ndim != 1 or not given.size or (np.diff(given) >= 0).any():
        raise ConfigError(f"grid 'indices': needs indices in descending order, got {indices}")

    def grid(process: Corruption) -> np.ndarray:
        last = need_chain("indices", process) - 1
        if given[0] > last:
            raise ConfigError(f"grid 'indices': {given[0]:g} lies beyond {last}, the chain's last index")
        return from_indices(process, given)

    return grid


@part("grid", "respaced")
def respaced(spacing: str | int) -> Grid:
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
        steps = need_chain("respaced", process)
        indices = _strided(int(counts[0]), steps) if is_ddim else _sections([int(count) for count in counts], steps)
        return from_indices(process, indices)

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
