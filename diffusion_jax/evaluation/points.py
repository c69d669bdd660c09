"""What an evaluation goes through: checkpoints, and settings of sampling, each combination a point."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.inference.runs import per_stage
from diffusion_jax.training import finished_steps


@dataclasses.dataclass(frozen=True)
class Point:
    """One thing to evaluate.

    Attributes:
      checkpoints: of each stage, or one for all; None is the newest.
      sampling: fields of `Sampling` that replace the run's own, one value for all stages or one for each.
    """

    checkpoints: tuple[int | None, ...] = (None,)
    sampling: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


def expand(
    workdirs: Sequence[str], checkpoints: str = "latest", sweep: Mapping[str, Sequence[Sequence[Any]]] | None = None
) -> list[Point]:
    """Every checkpoint with every combination of settings, checkpoints outermost.

    Args:
      checkpoints: "latest"; "all" of a single run's; or steps, such as "1000,2000", and "700/600" for a cascade's stages.
      sweep: for each field of `Sampling` the values to go through, each one value for all stages or one for each.

    Raises:
      ConfigError: checkpoints that cannot be read.
      CheckpointError: "all" of a run without a finished checkpoint.
    """
    names = list(sweep or {})
    combinations = list(itertools.product(*(sweep[name] for name in names))) if sweep else [()]
    return [
        Point(steps, dict(zip(names, values, strict=True)))
        for steps in _checkpoints(workdirs, checkpoints)
        for values in combinations
    ]


def _checkpoints(workdirs: Sequence[str], text: str) -> list[tuple[int | None, ...]]:
    if text == "latest":
        return [(None,)]
    if text == "all":
        if len(workdirs) != 1:
            raise ConfigError(f"checkpoints 'all' of a cascade of {len(workdirs)} runs: name steps, such as 1000/2000")
        steps = finished_steps(workdirs[0])
        if not steps:
            raise CheckpointError(f"{workdirs[0]} has no finished checkpoint yet: wait for one, or use --watch")
        return [(step,) for step in steps]
    found = []
    for part in text.split(","):
        try:
            steps = [None if step == "latest" else int(step) for step in part.split("/")]
        except ValueError as error:
            raise ConfigError(f"cannot read checkpoints {text!r}: write all, latest, 1000,2000 or 700/600") from error
        per_stage("checkpoints", steps, len(workdirs))
        found.append(tuple(steps))
    return found
