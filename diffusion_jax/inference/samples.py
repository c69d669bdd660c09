"""A folder of samples that can be interrupted and continued: what is in it was drawn with one set of settings."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.files import tile, write_image, write_json
from diffusion_jax.errors import ConfigError, DataError, nearest
from diffusion_jax.inference.stores import STORES

_PENDING = 8  # batches waiting to be written before the sampler is held up
_GRID = 64  # samples on the grid


class SampleFolder:
    """Samples by index, written in the background; `samples.json` records the settings.

    Args:
      path: the folder; made if need be.
      settings: what determines the samples, as JSON data.
      format: "png" (one file each) or "npz" (one file).
      image_shape: (H, W, C).

    Raises:
      ConfigError: the folder holds samples of other settings (the difference is shown), or an unknown format.
      DataError: the folder cannot be read or written.
    """

    def __init__(
        self, path: str | os.PathLike, settings: Mapping[str, Any], format: str, image_shape: tuple[int, int, int]
    ) -> None:
        if format not in STORES:
            raise ConfigError(f"unknown format {format!r}{nearest(format, STORES)} (known: {', '.join(STORES)})")
        self.path = Path(path)
        settings = json.loads(json.dumps({**settings, "format": format, "image_shape": image_shape}))
        self._check_settings(settings)
        try:
            self._store = STORES[format](self.path, tuple(image_shape))
            write_json(self.path / "samples.json", settings)
        except OSError as error:
            raise self._unwritable(error) from error
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="write samples")
        self._pending: deque[Future] = deque()

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        recorded = self.path / "samples.json"
        if not recorded.exists():
            return
        try:
            before = json.loads(recorded.read_text())
        except ValueError as error:
            raise DataError(f"{recorded} is not readable: remove that folder, or choose another one") from error
        changes = differences(before, settings)
        if changes:
            raise ConfigError(
                f"{self.path} holds samples of other settings: {'; '.join(changes)}; choose another folder, or remove it"
            )

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"cannot write samples to {self.path}: {error.strerror or error}")

    def missing(self, num: int) -> list[int]:
        """Those of the first `num` samples that are not on disk, or not intact, in order."""
        there = self._store.intact(num)
        return [index for index in range(num) if index not in there]

    def add(self, indices: np.ndarray, images: np.ndarray) -> None:
        """Write samples uint8 [N, H, W, C] in the background; waits only when the disk is far behind.

        Raises:
          DataError: an earlier write failed, such as on a full disk.
        """
        while len(self._pending) >= _PENDING:
            self._result(self._pending.popleft())
        self._pending.append(self._pool.submit(self._store.write, indices, images))

    def _result(self, future: Future) -> None:
        try:
            future.result()
        except OSError as error:
            raise self._unwritable(error) from error

    def flush(self) -> None:
        """Wait until everything added is on disk."""
        while self._pending:
            self._result(self._pending.popleft())

    def finish(self, num: int, labels: np.ndarray | None = None) -> Path:
        """Wait for the writers, join what is to be joined, draw the grid; its path is returned.

        Args:
          labels: int [num], recorded beside the samples.
        """
        self.flush()
        try:
            self._store.finish(num, labels)
            first = self._store.read(min(num, _GRID))
            write_image(self.path / "grid.png", tile(first, scale=max(1, 64 // first.shape[1])))
        except OSError as error:
            raise self._unwritable(error) from error
        return self.path / "grid.png"

    def close(self) -> None:
        """Let the writers end; what was added but not yet written is written."""
        self._pool.shutdown(wait=True)

    def __enter__(self) -> SampleFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """How two settings differ, a line for each value.

    >>> differences({"seed": 0, "steps": 10}, {"seed": 0, "steps": 20})
    ['steps was 10, now 20']
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        lines = []
        for key in sorted({*before, *now}):
            inner = f"{path}.{key}" if path else str(key)
            lines += differences(before.get(key), now.get(key), inner)
        return lines
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{path}[{number}]")]
    return [] if before == now else [f"{path} was {before!r}, now {now!r}"]
