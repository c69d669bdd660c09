"""What an evaluation found, a row for each case, kept as it comes: JSON lines, CSV, TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import processes
from diffusion_jax.errors import DataError
from diffusion_jax.files import only_writer, read_json_lines, replacing, sweep_temporary, user_path, write_json
from diffusion_jax.training.events import EventFile

_LOG = logging.getLogger(__name__)

Row = dict[str, Any]


class Table(list[dict[str, Any]]):
    """Numbers that are too many for a row: rows of their own, written to a CSV file beside the results."""


class Results:
    """The rows of an evaluation, on disk as soon as they are known.

    A row is {"key", "step", "checkpoints", "sampling", "metrics", "pictures", "tables", "settings", "versions",
    "seconds"}: `key` says which case it is, `step` is the last stage's checkpoint (None for images of unknown origin),
    `metrics` are numbers, or None where they are not finite, and `pictures` and `tables` name files below the folder.

    Args:
      folder: for results.jsonl, results.csv and tensorboard/; made when it is first held.
      tensorboard: whether to write event files.

    Raises:
      DataError: results.jsonl is not what an evaluation wrote; the message names the line.
    """

    def __init__(self, folder: str | os.PathLike, tensorboard: bool = True) -> None:
        self.folder = user_path(folder)
        self._tensorboard, self._held = tensorboard, False
        self.rows = processes.by_first(lambda: _read(self._path)) or []

    @property
    def _path(self) -> Path:
        return self.folder / "results.jsonl"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who writes into the folder; the rows are then those on disk. Within, it may be entered again.

        Raises:
          DataError: another evaluation writes there, the folder holds other files than an evaluation's, or cannot be written.
        """
        if self._held:
            yield
            return
        with contextlib.ExitStack() as locked:
            self.rows = processes.by_first(lambda: self._claim(locked)) or []
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def _claim(self, locked: contextlib.ExitStack) -> list[Row]:
        if self.folder.is_dir() and not self._path.exists():
            other = next((path.name for path in sorted(self.folder.iterdir()) if not path.name.startswith(".")), None)
            if other is not None:
                raise DataError(
                    f"{self.folder} holds {other}, which no evaluation wrote there: choose another folder with --out"
                )
        with self.writing():
            locked.enter_context(only_writer(self.folder, "evaluating"))
            for folder in (self.folder, self.folder / "pictures", self.folder / "tables"):
                sweep_temporary(folder)
            self._path.touch()
        return _read(self._path)

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
        with self.held(), self.writing() as writes:
            self.rows = [other for other in self.rows if other["key"] != row["key"]] + [row]
            if not writes:
                return
            with replacing(self._path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in self.rows))
            with replacing(self.folder / "results.csv") as temporary:
                temporary.write_text(_csv(self.rows), newline="")
            if self._tensorboard and row["step"] is not None:
                self._log(row)

    def show(self, row: Row) -> None:
        """Write what is said of one case beside the rows: metrics.json, its picture and its tables."""
        names = {name for each in self.rows for name in each.get("tables", {})}
        shown = {f"{name}.csv": row.get("tables", {}).get(name) for name in sorted(names)}
        shown["real_and_samples.png"] = row["pictures"].get("samples")
        with self.held(), self.writing() as writes:
            if writes:
                write_json(self.folder / "metrics.json", metrics_of(row))
            for name, source in shown.items() if writes else ():
                if source is None or not (self.folder / source).exists():
                    (self.folder / name).unlink(missing_ok=True)
                    continue
                with replacing(self.folder / name) as temporary:
                    shutil.copyfile(self.folder / source, temporary)

    def _log(self, row: Row) -> None:
        """A TensorBoard run for each sampling setting, so that its curve over checkpoints is one line."""
        folder = self.folder / "tensorboard" / (_label(row["sampling"]) or "run")
        events = EventFile(folder, f".{row['key']}")  # two files of one second must differ
        events.scalars(row["step"], {k: v for k, v in flat(row["metrics"]).items() if isinstance(v, int | float)})
        events.close()


def metrics_of(row: Row) -> dict[str, Any]:
    """Return what metrics.json says of a case: its metrics, the number of samples and the settings."""
    return {**row["metrics"], "num_samples": row["num"], "settings": row["settings"]}


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
    if not path.exists():
        return []
    return [row for _, row in read_json_lines(path, "a row of results", check=_problem, cut_short=_LOG.warning)]


_FIELDS = {"key": str, "checkpoints": list, "num": int, "sampling": dict, "metrics": dict, "pictures": dict, "settings": dict,
           "versions": dict}  # fmt: skip


def _problem(row: Row) -> str | None:
    """What is wrong with a row."""
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind):
            return f"{name!r} is missing or of another kind, so this is no row of an evaluation: remove the line"
    if not all(isinstance(value, list) for value in row["sampling"].values()) or not isinstance(row.get("step"), int | None):
        return "'sampling' or 'step' is of another kind, so this is no row of an evaluation: remove the line"
    files = [*row["pictures"].values(), *row.get("tables", {}).values()]
    if not all(isinstance(file, str) and re.fullmatch(r"(pictures|tables)/[\w.-]+", file) for file in files):
        return f"{files} are not all files of pictures/ and tables/: remove the line"
    return None


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
