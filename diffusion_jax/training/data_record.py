"""What a run's data were, kept beside its configuration: a run does not go on with other data without a word."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffusion_jax import processes
from diffusion_jax.data import Pipeline
from diffusion_jax.data.record import Recorded, brief, described, differences
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import CheckpointError
from diffusion_jax.files import read_json, write_json
from diffusion_jax.training.checkpoints import finished_steps

_LOG = logging.getLogger(__name__)

FILE = "data.json"


def data_identity(pipeline: Pipeline) -> dict[str, Any]:
    """Return what a pipeline's data are, as short JSON data: name, class names, counts and digest; for comparing hosts."""
    return brief(described(pipeline.source))


def read(workdir: str | Path) -> Recorded | None:
    """Return what a run's data were, to hold data against; None where it is not recorded.

    Raises:
      CheckpointError: a damaged record.
    """
    path = Path(workdir) / FILE
    if not path.exists():
        return None
    found = read_json(path, "the record of a run's data", check=_problem, mend="remove it", error=CheckpointError)
    return Recorded(found, f"restore them, or remove {path} to go on with them as they are")


def _problem(found: dict[str, Any]) -> str | None:
    names = found.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "it has no class_names"
    mappings = all(isinstance(found.get(name, {}), dict) for name in ("files", "classes"))
    return None if mappings else "files and classes must be mappings"


def check(workdir: str | Path, source: Source, allow: bool = False) -> None:
    """Compare the training data with those of the run in a directory; one without a finished checkpoint may begin anew.

    Args:
      allow: log a difference, and go on.

    Raises:
      DataError: they differ.
    """
    found = read(workdir) if finished_steps(workdir) else None
    if found is None:
        return
    if allow:
        for line in differences(found.description, described(source)):
            _LOG.warning("Going on with other data: %s.", line)
    else:
        Recorded(found.description, "restore them, or go on with --allow_other_data").check(source)


def write(workdir: str | Path, source: Source) -> None:
    """Record the training data in the run's directory, by the first process.

    Raises:
      CheckpointError: the directory cannot be written.
    """
    if not processes.is_first():
        return
    try:
        write_json(Path(workdir) / FILE, described(source))
    except OSError as error:
        raise CheckpointError(f"cannot write to {workdir}: {error.strerror}; choose a writable --workdir") from error
