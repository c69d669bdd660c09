"""What an evaluation goes through: checkpoints and settings of sampling, each combination a case."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax import processes
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.inference.run import per_stage
from diffusion_jax.training import config as configs
from diffusion_jax.training import finished_steps


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to evaluate.

    Attributes:
      checkpoints: of each stage, or one for all; None is the newest.
      sampling: fields of `Sampling` that replace the run's own, one value for all stages or one for each.
    """

    checkpoints: tuple[int | None, ...] = (None,)
    sampling: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


def expand(
    workdirs: Sequence[str], checkpoints: str = "latest", sweep: Mapping[str, Sequence[Sequence[Any]]] | None = None
) -> list[Case]:
    """Return every checkpoint with every combination of settings, checkpoints outermost.

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
        Case(steps, dict(zip(names, values, strict=True)))
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


_LOG = logging.getLogger(__name__)


def watch(
    workdir: str,
    evaluate: Callable[[int], None],
    *,
    poll: float = 10.0,
    patience: float = 3600.0,
) -> list[int]:
    """Call `evaluate` with the step of every finished checkpoint, oldest first, until the run's last step or `patience`.

    A checkpoint that training removes before it could be read is passed over with a warning.

    Args:
      workdir: of the run; it need not have begun.
      poll: seconds between looks.
      patience: seconds without a new checkpoint after which the job is taken to have ended.

    Returns:
      The steps that were evaluated.
    """
    done: list[int] = []
    passed: set[int] = set()
    since = time.monotonic()
    while True:
        new = processes.agreed([step for step in _steps(workdir) if step not in passed])
        for step in new:
            passed.add(step)
            try:
                evaluate(step)
                done.append(step)
            except CheckpointError as error:
                _LOG.warning("Checkpoint %d is passed over: %s", step, error)
            since = time.monotonic()
        if processes.agreed(bool(passed) and max(passed) >= _last_step(workdir)):
            return done
        if processes.agreed(time.monotonic() - since > patience):
            _LOG.warning("No new checkpoint in %s for %.0f s: the job seems to have ended.", workdir, patience)
            return done
        if not new:
            time.sleep(poll)


def wait_for_run(workdir: str, *, poll: float = 10.0, patience: float = 3600.0) -> None:
    """Wait until a run has begun, so that its configuration can be read.

    Raises:
      CheckpointError: it has not, within `patience` seconds.
    """
    since = time.monotonic()
    while not Path(workdir, "config.json").exists():
        if time.monotonic() - since > patience:
            raise CheckpointError(
                f"no run has begun in {workdir} within {patience:g} s: start the training, or check --workdir"
            )
        time.sleep(poll)


def _steps(workdir: str) -> list[int]:
    return finished_steps(workdir) if Path(workdir, "checkpoints").exists() else []


def _last_step(workdir: str) -> int:
    return configs.read(workdir)["training"]["steps"]
