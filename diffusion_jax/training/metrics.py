"""Where metrics go: JSON lines, TensorBoard event files, a progress bar on a terminal or lines in a log."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from diffusion_jax.data.files import replacing
from diffusion_jax.errors import CheckpointError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this context, a full disk or a read-only directory is a `CheckpointError` that names the path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; what was saved is kept: mend it and run the same command again"
        ) from error


class Writers:
    """JSON lines in metrics.jsonl and TensorBoard events, from the first process.

    Args:
      workdir: of the run.
      start: the step from which the run goes on: rows of later steps, written before a crash, are removed.
      tensorboard: whether to write event files.

    Attributes:
      kept: the rows up to `start`, on the first process.
    """

    def __init__(self, workdir: str | Path, start: int, tensorboard: bool = True) -> None:
        self._active = jax.process_index() == 0
        self._path = Path(workdir) / "metrics.jsonl"
        self.kept: list[dict[str, Any]] = []
        if not self._active:
            return
        with writing(self._path):
            self.kept = _truncate(self._path, start)
            self._lines = self._path.open("a", buffering=1)
            self._board = _Board(Path(workdir) / "tensorboard", start + 1) if tensorboard else None

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Record a row of scalars; what is not finite becomes null in the JSON line.

        Raises:
          CheckpointError: the disk is full, say.
        """
        if not self._active:
            return
        clean = {key: (value if math.isfinite(value) else None) for key, value in row.items()}
        with writing(self._path):
            self._lines.write(json.dumps({"step": step, **clean}) + "\n")
            if self._board:
                self._board.write(step, [summary.scalar(key, value) for key, value in row.items()])

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C], in TensorBoard."""
        if self._active and self._board:
            with writing(self._path):
                self._board.write(step, [summary.image(name, image, dataformats="HWC")])

    def close(self) -> None:
        """Flush and close the files."""
        if self._active:
            with contextlib.suppress(OSError):  # what could be written is there; a failed write was reported
                self._lines.close()
                if self._board:
                    self._board.close()


class _Board:
    """An event file, written and flushed at once: a background writer would hang or hide the error of a full disk.

    Args:
      purge_step: TensorBoard hides what earlier files say of this step and later ones.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}.{purge_step}")
        self._events.write_event(Event(step=purge_step, file_version="brain.Event:2"))
        self._events.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, summaries: list[Any]) -> None:
        for found in summaries:
            self._events.write_event(Event(step=step, wall_time=time.time(), summary=found))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _truncate(path: Path, start: int) -> list[dict[str, Any]]:
    """Drop rows after `start`, and a last line that a crash cut short; returns the rows that stay."""
    if not path.exists():
        return []
    kept, rows = [], []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= start:
            kept.append(line)
            rows.append(row)
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))
    return rows


class Progress:
    """A bar with the time left on a terminal; lines in a log otherwise."""

    def __init__(self, start: int, total: int) -> None:
        self._total, self._start, self._began = total, start, time.perf_counter()
        shown = sys.stderr.isatty() and jax.process_index() == 0
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True) if shown else None

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Show a logged step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {row['images_per_second']:.0f} images/s")
            return
        left = (time.perf_counter() - self._began) / max(step - self._start, 1) * (self._total - step)
        logger.info(
            "step %d/%d  loss %.4f  grad norm %.3f  %.0f images/s  data wait %.0f %%  %s left",
            step, self._total, row["loss"], row["grad_norm"], row["images_per_second"],
            100 * row["data_wait_share"], f"{left / 60:.1f} min" if left > 90 else f"{left:.0f} s",
        )  # fmt: skip

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()
