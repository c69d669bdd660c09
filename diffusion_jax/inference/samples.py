"""A folder of samples that can be interrupted and continued: what is in it was drawn with one set of settings."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import processes
from diffusion_jax.data.files import by_class, png_of, tile
from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.files import only_writer, user_path
from diffusion_jax.inference.manifest import Manifest
from diffusion_jax.inference.stores import writers_of
from diffusion_jax.spec import Spec

_PENDING = 8  # batches waiting to be written before the sampler is held up
_GRID = 64  # samples on the grid
RECORD = "samples.json"


class SampleFolder:
    """Samples by index, written in the background; `samples.json` records the settings, manifest.jsonl every file.

    One program at a time writes into it. Where there are several processes all must use it alike; the first one writes, and
    all see the same files at the end.

    Args:
      path: the folder; made if need be. It must be empty, or one of these settings.
      settings: what determines the samples, as JSON data.
      format: one of the formats of the samples' kind in `stores.WRITERS`; the first by default.
      spec: of a sample.
      record: name of the file of settings.

    Raises:
      ConfigError: the folder holds samples of other settings (the difference is shown), or an unknown format.
      DataError: the folder holds other files, another program writes it, or it cannot be read or written.
    """

    def __init__(
        self, path: str | os.PathLike, settings: Mapping[str, Any], format: str | None, spec: Spec, record: str = RECORD
    ) -> None:
        format = _format(format, spec)
        self.path, self._spec = user_path(path), spec
        self._settings = json.loads(json.dumps({**settings, "format": format, "shape": spec.shape, "kind": spec.kind}))
        self._manifest = Manifest(self.path, record)
        self._store: Any = writers_of(spec.kind)[format](self._manifest, spec.shape)
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future] = deque()
        self._locked = contextlib.ExitStack()
        processes.by_first(self._claim)

    def _claim(self) -> None:
        self._manifest.check()  # before a lock is put there
        with contextlib.ExitStack() as locked, self._writing():
            locked.enter_context(only_writer(self.path, "drawing samples"))
            self._manifest.claim(self._settings)
            self._locked = locked.pop_all()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="write samples")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot write samples to {self.path}: {error.strerror or error}") from error

    def missing(self, num: int) -> list[int]:
        """Return those of the first `num` samples that are not on disk, in order; those that are there are read and checked.

        Raises:
          ConfigError: there are more than `num`.
          DataError: a file is not as it was written.
        """
        return processes.by_first(lambda: self._missing(num))

    def _missing(self, num: int) -> list[int]:
        with self._writing():
            self._manifest.scan()
        there = self._there()
        if there and max(there) >= num:
            raise ConfigError(
                f"{self.path} holds {max(there) + 1} samples, more than the {num} asked for: "
                f"give --num={max(there) + 1} or more, or choose another folder"
            )
        return [index for index in range(num) if index not in there]

    def _there(self) -> set[int]:
        """The samples that are on disk."""
        lines = [line for line in self._manifest.intact.values() if "first" in line]
        return {index for line in lines for index in range(line["first"], line["first"] + line["count"])}

    def add(self, indices: np.ndarray, samples: np.ndarray) -> None:
        """Write samples [N, ...] in the background; waits only when the disk is far behind.

        Raises:
          DataError: an earlier write failed, such as on a full disk.
        """
        if self._pool is None:
            return
        while len(self._pending) >= _PENDING:
            self._result(self._pending.popleft())
        self._pending.append(self._pool.submit(self._store.write, indices, samples))

    def _result(self, future: Future) -> None:
        with self._writing():
            future.result()

    def flush(self) -> None:
        """Wait until everything added is on disk."""
        while self._pending:
            self._result(self._pending.popleft())

    def finish(
        self,
        num: int,
        labels: np.ndarray | None = None,
        picture: Callable[[np.ndarray], np.ndarray] | None = None,
        shown: int = _GRID,
    ) -> Path:
        """Wait for the writers, join what is to be joined, draw the grid of images.

        Args:
          labels: int [num], recorded beside the samples.
          picture: of the first samples uint8 [N, H, W, C] -> uint8 [h, w, C]; by default a grid with a class to a row
            where labels go round a few, else a square one.
          shown: how many samples the picture shows at most.

        Returns:
          The path of the grid, or of the folder where samples are no pictures.

        Raises:
          DataError: what is on disk is not samples 0 to num - 1, or the disk is full.
        """
        if self._pool is not None:
            self.flush()
            with self._writing():
                there = self._there()
                if there != set(range(num)):
                    odd = min(there.symmetric_difference(range(num)))
                    raise DataError(f"{self.path}: sample {odd} is {'missing' if odd < num else f'beyond the {num} asked for'}")
                self._store.finish(num, labels)
                if self._spec.kind == "image":
                    drawn = (picture or functools.partial(_grid, labels))(self._store.read(min(num, shown)))
                    self._manifest.put([("grid.png", png_of(drawn), {})])
                self._manifest.complete(num)
        processes.barrier(f"samples in {self.path}")
        return self.path / "grid.png" if self._spec.kind == "image" else self.path

    def close(self, *, now: bool = False) -> None:
        """Let the writers end, and the folder go; what was added but not yet written is written, or with `now` dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=now)
        self._locked.close()

    def __enter__(self) -> SampleFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(now=kind is not None)


def _grid(labels: np.ndarray | None, images: np.ndarray) -> np.ndarray:
    arranged = by_class(images, None if labels is None else np.asarray(labels)[: len(images)])
    return tile(*arranged, scale=max(1, 64 // images.shape[1]))


def check_folder(path: str | os.PathLike, format: str | None, spec: Spec, record: str = RECORD) -> None:
    """Raise what `SampleFolder` would, as far as it can be known before the settings are; no folder is made.

    Raises:
      ConfigError: an unknown format.
      DataError: the folder holds other files, another program writes it, or it cannot be read or written.
    """
    _format(format, spec)
    folder = user_path(path)

    def look() -> None:
        Manifest(folder, record).check()
        if folder.exists():
            with only_writer(folder, "about to draw samples"):
                pass

    processes.by_first(look)


def _format(format: str | None, spec: Spec) -> str:
    format = format or next(iter(writers_of(spec.kind)))
    check_choice(f"format of {spec.kind} samples", format, writers_of(spec.kind))
    return format
