"""What an evaluation found, a row for each case, kept as it comes: JSON lines, CSV, TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import processes
from diffusion_jax.errors import DataError
from diffusion_jax.files import replacing
from diffusion_jax.training.events import EventFile

Row = dict[str, Any]


class Table(list[dict[str, Any]]):
    """Numbers that are too many for a row: rows of their own, written to a CSV file beside the results."""


class Results:
    """The rows of an evaluation, on disk as soon as they are known.

    A row is {"key", "step", "checkpoints", "sampling", "metrics", "pictures", "tables", "settings", "versions",
    "seconds"}: `key` says which case it is, `step` is the last stage's checkpoint (None for images of unknown origin),
    `metrics` are numbers, or None where they are not finite, and `pictures` and `tables` name files below the folder.

    Args:
      folder: for results.jsonl, results.csv and tensorboard/; made if need be.
      tensorboard: whether to write event files.

    Raises:
      DataError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, tensorboard: bool = True) -> None:
        self.folder = Path(folder)
        self._tensorboard = tensorboard
        with self.writing() as writes:
            if writes:
                self.folder.mkdir(parents=True, exist_ok=True)
            self.rows = _read(self.folder / "results.jsonl")

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Give whether this process writes; within, a full disk or a read-only folder is a `DataError` that names it."""
        try:
            yield processes.is_first()
        except OSError as error:
            raise DataError(
                f"cannot write to {self.folder}: {error.strerror or error}; what was found is kept: mend it and run again"
            ) from error

    def find(self, key: str) -> Row | None:
        """Return the row of a case, if there is one."""
        return next((row for row in self.rows if row["key"] == key), None)

    def add(self, row: Row) -> None:
        """Record a row, in place of an earlier one with its key."""
        row = finite(row)
        self.rows = [other for other in self.rows if other["key"] != row["key"]] + [row]
        with self.writing() as writes:
            if not writes:
                return
            with replacing(self.folder / "results.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in self.rows))
            with replacing(self.folder / "results.csv") as temporary:
                temporary.write_text(_csv(self.rows), newline="")
            if self._tensorboard and row["step"] is not None:
                self._log(row)

    def _log(self, row: Row) -> None:
        """A TensorBoard run for each sampling setting, so that its curve over checkpoints is one line."""
        folder = self.folder / "tensorboard" / (_label(row["sampling"]) or "run")
        events = EventFile(folder, f".{row['key']}")  # two files of one second must differ
        events.scalars(row["step"], {k: v for k, v in flat(row["metrics"]).items() if isinstance(v, int | float)})
        events.close()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested numbers by dotted names.

    >>> flat({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def finite(value: Any) -> Any:
    """JSON data in which what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _label(sampling: Mapping[str, Any]) -> str:
    """A setting as a folder's name."""
    return "-".join(f"{name}_{'_'.join(map(str, values))}" for name, values in sorted(sampling.items())).replace("/", "_")


def _read(path: Path) -> list[Row]:
    """The rows of a file; a line that a crash cut short is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _csv(rows: list[Row]) -> str:
    """A line for each case: checkpoint, what was varied, metrics."""
    lines = [
        {"step": row["step"], "key": row["key"]}
        | {name: "/".join(map(str, values)) for name, values in row["sampling"].items()}
        | {name: value for name, value in flat(row["metrics"]).items() if not isinstance(value, list)}
        for row in rows
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
