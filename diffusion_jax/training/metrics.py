"""What a run says while it trains: rows of metrics and where they go, how fast it is, and whether the loss has jumped."""

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
from tqdm import tqdm

from diffusion_jax.errors import CheckpointError
from diffusion_jax.files import read_json_lines, replacing
from diffusion_jax.training.events import EventFile

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only directory into a `CheckpointError` that names the path, within this context."""
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
        self._board: EventFile | None = None
        self.kept: list[dict[str, Any]] = []
        if not self._active:
            return
        with writing(self._path):
            self.kept = _truncate(self._path, start)
            self._lines = self._path.open("a", buffering=1)
            if tensorboard:
                self._board = EventFile(Path(workdir) / "tensorboard", f".{os.getpid()}.{start + 1}", start + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Record a row of scalars; what is not finite becomes null in the JSON line.

        Raises:
          CheckpointError: the disk is full, say.
        """
        if not self._active:
            return
        self._open_again(step)
        clean = {key: (value if math.isfinite(value) else None) for key, value in row.items()}
        with writing(self._path):
            self._lines.write(json.dumps({"step": step, **clean}) + "\n")
            if self._board:
                self._board.scalars(step, row)

    def _open_again(self, step: int) -> None:
        """Begin the file anew where it was removed: what is written into a removed file nobody finds."""
        try:
            there = os.path.samestat(os.stat(self._path), os.fstat(self._lines.fileno()))
        except FileNotFoundError:
            there = False
        except (OSError, ValueError):
            return  # what is wrong with it, writing will say
        if not there:
            logger.warning("%s was removed or replaced: it is written anew from step %d on.", self._path, step)
            with writing(self._path):
                self._lines.close()
                self._lines = self._path.open("a", buffering=1)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C], in TensorBoard."""
        if self._board:
            with writing(self._path):
                self._board.image(step, name, image)

    def close(self) -> None:
        """Flush and close the files."""
        if self._active:
            with contextlib.suppress(OSError):  # what could be written is there; a failed write was reported
                self._lines.close()
                if self._board:
                    self._board.close()


def _truncate(path: Path, start: int) -> list[dict[str, Any]]:
    """Drop rows after `start`, and a last line that a crash cut short; return the rows that stay."""
    if not path.exists():
        return []
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        with replacing(path) as temporary:
            temporary.write_bytes(whole[: whole.rfind(b"\n") + 1])
    rows = [row for _, row in read_json_lines(path, "a row of metrics", check=_unlike_a_row, error=CheckpointError)]
    kept = [row for row in rows if row["step"] <= start]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    return kept


def _unlike_a_row(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a line of metrics.jsonl."""
    if type(row.get("step")) is not int:
        return "no whole number 'step'"
    odd = [key for key, value in row.items() if not (value is None or type(value) in (int, float))]
    return f"{odd[0]!r} is no number" if odd else None


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


# How fast -----------------------------------------------------------------------------------------------------------------

# Dense bf16 peaks of one JAX device in FLOP/s by the start of its name, from the vendors' data sheets; a longer name
# stands before its beginning. TPU v2 and v3 chips are two devices each.
PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(kind: str) -> float | None:
    """Return the dense bf16 peak in FLOP/s of a device kind, or None where it is not known.

    >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
    (197000000000000.0, None)
    """
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


class Clock:
    """A stop-watch of the throughput since the last row.

    Args:
      batch_size: the global one.
      flops: of a step, per device, if known.
    """

    def __init__(self, batch_size: int, flops: float | None) -> None:
        self._batch_size, self._flops, self._peak = batch_size, flops, peak_flops(jax.devices()[0].device_kind)
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def step(self, waited: float) -> None:
        """Count a step that waited so many seconds for its batch."""
        self._waited += waited
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Leave out time of the interval that was not training."""
        self._start += seconds

    def row(self) -> dict[str, float]:
        """Return the interval's metrics; call it when the device has finished the interval's steps."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        row = {
            "images_per_second": self._batch_size * self._steps / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
            "data_wait_share": self._waited / seconds,
        }
        if self._flops and self._peak:
            row["flop_utilisation"] = self._flops * self._steps / seconds / self._peak
        return row


class CollapseWatch:
    """A watch on the loss by noise level: training that breaks does so at one level first.

    The logarithm of each level's loss is followed by an exponential mean and variance; a jump is more than
    `deviations` standard deviations and more than a factor `factor` above the mean.

    Args:
      warmup: how many rows of a level are seen before a jump of it is reported.

    >>> watch = CollapseWatch(warmup=3)
    >>> rows = [1.0, 1.1, 0.9, 1.0, 5.0]
    >>> [watch.update({"loss_by_log_snr/0_to_5": value}) for value in rows][-1]
    ['loss_by_log_snr/0_to_5 jumped from about 1.0 to 5.0']
    """

    def __init__(self, deviations: float = 6.0, factor: float = 2.0, warmup: int = 5) -> None:
        self._deviations, self._factor, self._warmup = deviations, factor, warmup
        self._course: dict[str, tuple[int, float, float]] = {}

    def update(self, row: Mapping[str, float | None]) -> list[str]:
        """Take in a row, and return one message for each level that jumped in it."""
        messages = []
        for name, value in row.items():
            if not name.startswith("loss_by_log_snr/") or value is None or not value > 0:
                continue
            count, mean, variance = self._course.get(name, (0, math.log(value), 0.01))
            distance = math.log(value) - mean
            if count >= self._warmup and distance > max(self._deviations * variance**0.5, math.log(self._factor)):
                messages.append(f"{name} jumped from about {math.exp(mean):.1f} to {value:.1f}")
            rate = max(0.1, 1 / (count + 1))
            self._course[name] = (
                count + 1,
                mean + rate * distance,
                (1 - rate) * (variance + rate * distance**2),
            )
        return messages
