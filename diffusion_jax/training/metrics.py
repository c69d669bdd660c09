"""Where metrics go: JSON lines, TensorBoard event files, a progress bar on a terminal or lines in a log."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from diffusion_jax.data.files import replacing

logger = logging.getLogger(__name__)

# Dense bf16 peaks in FLOP/s by the start of a device's name, from the vendors' data sheets.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device | None = None) -> float | None:
    """The device's dense bf16 peak in FLOP/s, or None where it is not known."""
    kind = (device or jax.devices()[0]).device_kind
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


class Writers:
    """JSON lines in metrics.jsonl and TensorBoard events, from one process.

    Args:
      workdir: of the run.
      start: the step from which the run goes on: rows of later steps, written before a crash, are removed.
      tensorboard: whether to write event files.
    """

    def __init__(self, workdir: str | Path, start: int, tensorboard: bool = True) -> None:
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = Path(workdir) / "metrics.jsonl"
        _truncate(path, start)
        self._lines = path.open("a", buffering=1)
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=start) if tensorboard else None

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Record a row of scalars; what is not finite becomes null in the JSON line."""
        if not self._active:
            return
        clean = {key: (value if math.isfinite(value) else None) for key, value in row.items()}
        self._lines.write(json.dumps({"step": step, **clean}) + "\n")
        if self._board:
            for key, value in row.items():
                self._board.add_scalar(key, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C], in TensorBoard."""
        if self._active and self._board:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        if self._active:
            self._lines.close()
            if self._board:
                self._board.close()


def _truncate(path: Path, start: int) -> None:
    """Drop rows after `start`, and a last line that a crash cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= start:
            kept.append(line)
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))


class Clock:
    """Throughput since the last row: images a second, the share of time spent waiting for data, FLOP utilisation."""

    def __init__(self, batch_size: int, flops_per_device: float | None) -> None:
        self._batch_size, self._flops, self._peak = batch_size, flops_per_device, peak_flops()
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def step(self, waited: float) -> None:
        """Count a step that waited so many seconds for its batch."""
        self._waited += waited
        self._steps += 1

    def row(self) -> dict[str, float]:
        """The interval's metrics; call it when the device has finished the interval's steps."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        row = {
            "images_per_second": self._batch_size * self._steps / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
            "data_wait_share": self._waited / seconds,
        }
        if self._flops and self._peak:
            row["flop_utilisation"] = self._flops * self._steps / seconds / self._peak
        return row


class Progress:
    """A bar with the time left on a terminal; lines in a log otherwise."""

    def __init__(self, start: int, total: int) -> None:
        self._total, self._start, self._began = total, start, time.perf_counter()
        shown = sys.stderr.isatty() and jax.process_index() == 0
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True) if shown else None

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Show a logged step."""
        if self._bar:
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
        if self._bar:
            self._bar.close()
