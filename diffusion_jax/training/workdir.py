"""What lies in a run's directory, as far as names and JSON tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion_jax.errors import CheckpointError


def finished_steps(workdir: str | Path) -> list[int]:
    """The steps with a finished checkpoint in a run's directory, oldest first."""
    path = Path(workdir) / "checkpoints"
    return sorted(int(entry.name) for entry in path.glob("*") if entry.is_dir() and entry.name.isdigit())


def read_meta(workdir: str | Path, step: int) -> dict[str, Any]:
    """What was recorded beside a checkpoint: step, configuration, library versions, metric sums since the last log.

    Raises:
      CheckpointError: there is no such checkpoint, or its record is damaged.
    """
    path = Path(workdir) / "checkpoints" / str(step) / "meta" / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); name another --step") from error
