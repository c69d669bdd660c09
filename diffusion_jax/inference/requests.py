"""What to ask a sampler for: columns of conditioning by sample index, which the conditioners take from flags or from data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.inference.cascade import Cascade
from diffusion_jax.registry import known, lookup
from diffusion_jax.systems.conditioners import Conditioner, DataOf, Flag, gather


@dataclasses.dataclass(frozen=True)
class Requests:
    """Conditioning by sample index.

    Attributes:
      columns: arrays by name, [M, ...] each; they repeat past their end.
    """

    columns: dict[str, np.ndarray]

    def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the conditioning of samples int [N], [N, ...] each."""
        return {name: column[indices % len(column)] for name, column in self.columns.items()}

    def labels(self, num: int) -> np.ndarray | None:
        """Return the labels of the first `num` samples, int [num]; None without labels."""
        return self(np.arange(num))["label"] if "label" in self.columns else None

    def check(self, cascade: Cascade, num: int) -> None:
        """Raise a `ConfigError` if the cascade does not take this conditioning for its first `num` samples."""
        cascade.check_request({name: column[np.arange(min(num, len(column)))] for name, column in self.columns.items()})


def flags() -> dict[str, Flag]:
    """Return the command-line flags of all registered conditioners, by name."""
    return {flag.name: flag for name in known("conditioner") for flag in lookup("conditioner", name).flags}


def ask(
    conditioners: Sequence[Conditioner], source: DataOf, num: int | None = None, given: Mapping[str, str] | None = None
) -> tuple[Requests, int | None]:
    """Return what conditioners ask for, and how many samples that suggests, if flags say so.

    What flags spell out goes first. Conditioners that need data and were not spelled out take that of held-out examples, with
    their labels; the rest is the conditioners' default, unless a person gave data of their own, whose labels nobody knows.

    Args:
      source: the run's data.
      num: how many held-out examples are taken at most; None is all.
      given: the values of the flags that were given, by name.

    Raises:
      ConfigError: a flag that no conditioner takes, or a value that cannot be read.
      DataError: files that are not what they should be.
    """
    given = given or {}
    _check_flags(conditioners, given)
    own: dict[str, np.ndarray] = {}
    along: dict[str, np.ndarray] = {}
    waiting, overrides, suggested = [], {}, None
    for each in conditioners:
        mine = {flag.name: given[flag.name] for flag in each.flags if flag.name in given}
        found, count = each.from_flags(mine, source)
        suggested = suggested or count
        overrides |= each.data_overrides(mine)
        for name, column in found.items():
            (own if name in each.columns else along)[name] = column
        if each.needs_data and not found:
            waiting.append(each)
    columns = {**along, **own}
    if waiting:
        request = lambda batch: {name: x for each in waiting for name, x in each.request(batch).items()}  # noqa: E731
        columns = {**gather(request, source.pipeline("test", **overrides), num), **columns}
    elif not any(each.needs_data for each in conditioners):
        columns = {**{name: x for each in conditioners for name, x in each.default().items()}, **columns}
    return Requests(columns), suggested


def _check_flags(conditioners: Sequence[Conditioner], given: Mapping[str, Any]) -> None:
    taken = {flag.name for each in conditioners for flag in each.flags}
    for name in given:
        if name not in taken:
            of = [kind for kind in known("conditioner") if name in {flag.name for flag in lookup("conditioner", kind).flags}]
            have = ", ".join(repr(each.name) for each in conditioners) or "nothing: it draws from noise alone"
            of = " or ".join(map(repr, of))
            raise ConfigError(f"--{name} is for runs conditioned on {of}; this one is conditioned on {have}")
