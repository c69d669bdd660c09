"""Beside a training job: evaluates every checkpoint as it appears, until the last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from diffusion_jax.errors import CheckpointError
from diffusion_jax.training import config as configs
from diffusion_jax.training import finished_steps

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
        new = [step for step in _steps(workdir) if step not in passed]
        for step in new:
            passed.add(step)
            try:
                evaluate(step)
                done.append(step)
            except CheckpointError as error:
                _LOG.warning("Checkpoint %d is passed over: %s", step, error)
            since = time.monotonic()
        if passed and max(passed) >= _last_step(workdir):
            return done
        if time.monotonic() - since > patience:
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
