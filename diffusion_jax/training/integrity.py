"""Checksums of checkpoints: written with each, and held to before one is read.

TensorStore keeps no checksums of array data: a flipped bit becomes another number. So the SHA-256 of each file of a
checkpoint is recorded in its sums.json, in the thread that saves and before the rename that finishes the checkpoint: one
that is finished has its sums, whenever the program is killed.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import processes
from diffusion_jax.errors import CheckpointError
from diffusion_jax.files import read_json, write_json
from diffusion_jax.lazy import lazy

logger = logging.getLogger(__name__)

ocp = lazy("orbax.checkpoint")

_SUMS = "sums.json"
_GOOD, _NO_SUMS = -1, -2
_verified: dict[Path, Any] = {}  # checkpoints that were found good, and the times of their files then


@functools.cache
def summed_path() -> type:
    """Return a class like Orbax's directory that is renamed when it is complete; that of a step has sums.json by then."""

    class SummedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            """Finish the directory; called in one process, when all have written their part."""
            if self.get_final().name.isdigit():  # else it is one of the directories inside of a step's
                write_sums(Path(self.get()))
            await super().finalize()

    return SummedPath


def write_sums(folder: Path) -> None:
    """Record the checksums of all files in the directories of a checkpoint; those beside them are Orbax's own notes."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/**/*") if path.is_file())
    sums = dict(zip(names, _sums(folder, names), strict=True))
    if None in sums.values():
        raise OSError(f"what was written to {folder} cannot be read back")
    write_json(folder / _SUMS, sums)


def verify(folder: Path) -> None:
    """Hold the files of a checkpoint to their checksums; all processes must call it, and each reads a part of the files.

    What this process has verified before, and was not written since, is not read again.

    Raises:
      CheckpointError: a file is damaged or missing, and which; on every process alike.
    """
    alone = jax.process_count() == 1
    state = _state(folder)
    if alone and _verified.get(folder) == state:
        return
    try:
        recorded, problem = _recorded(folder), None
    except CheckpointError as error:
        recorded, problem = {}, error
    names = sorted(recorded or {})
    mine = range(jax.process_index(), len(names), jax.process_count())
    found = _NO_SUMS if problem else _first_bad(folder, names, recorded or {}, mine)
    worst = processes.gather(np.array([found], np.int32)).ravel()
    if (worst == _NO_SUMS).any():
        raise problem or CheckpointError(f"{folder / _SUMS} cannot be read by every process")
    if (worst != _GOOD).any():
        name = names[worst[worst != _GOOD].min()]
        how = "its checksum differs" if (folder / name).is_file() else "it is missing"
        raise CheckpointError(f"{folder / name} is damaged: {how}")
    if recorded is None:
        logger.warning("%s was saved without checksums, by an earlier version: damage to it may go unnoticed.", folder)
    _verified[folder] = state


def _recorded(folder: Path) -> dict[str, str] | None:
    """The checksums by the files' names; None of a checkpoint that was saved before there were any."""
    if (folder / _SUMS).exists():
        return read_json(folder / _SUMS, "the checksums of a checkpoint", mend="it is damaged", error=CheckpointError)
    try:
        meta = json.loads((folder / "meta" / "metadata").read_text())
        without = not meta.get("checksums")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'meta' / 'metadata'} is damaged: {' '.join(str(error).split())[:200]}") from error
    if without:
        return None
    raise CheckpointError(f"{folder / _SUMS} is damaged: it is missing")


def _state(folder: Path) -> Any:
    """What changes when a file of a checkpoint is written."""
    entries = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return [(os.fspath(path), status.st_size, status.st_mtime_ns) for path, status in entries]


def _first_bad(folder: Path, names: list[str], recorded: dict[str, str], mine: range) -> int:
    """The number of the first of this process's files that is not as recorded, or `_GOOD`."""
    sums = _sums(folder, [names[number] for number in mine])
    return next((number for number, found in zip(mine, sums, strict=True) if found != recorded[names[number]]), _GOOD)


def _sums(folder: Path, names: list[str]) -> list[str | None]:
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # hashlib lets go of the interpreter
        return list(threads.map(lambda name: _sum(folder / name), names))


def _sum(path: Path) -> str | None:
    """The SHA-256 of a file; None of one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
