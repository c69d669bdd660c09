"""A folder of samples that can be interrupted and continued: what is in it was drawn with one set of settings."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import processes
from diffusion_jax.data.files import by_class, read_image, tile, write_image
from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.files import replacing, write_json
from diffusion_jax.identity import differences
from diffusion_jax.spec import Spec

_PENDING = 8  # batches waiting to be written before the sampler is held up
_GRID = 64  # samples on the grid


class SampleFolder:
    """Samples by index, written in the background; `samples.json` records the settings.

    Where there are several processes all must use it alike; the first one writes, and all see the same files at the end.

    Args:
      path: the folder; made if need be.
      settings: what determines the samples, as JSON data.
      format: one of the formats of the samples' kind in `WRITERS`; the first by default.
      spec: of a sample.

    Raises:
      ConfigError: the folder holds samples of other settings (the difference is shown), or an unknown format.
      DataError: the folder cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any], format: str | None, spec: Spec) -> None:
        writers = WRITERS.get(spec.kind, _ANYTHING)
        format = format or next(iter(writers))
        check_choice(f"format of {spec.kind} samples", format, writers)
        self.path, self._spec = Path(path), spec
        settings = json.loads(json.dumps({**settings, "format": format, "shape": spec.shape, "kind": spec.kind}))
        self._store, self._pool = writers[format](self.path, spec.shape), None
        self._pending: deque[Future] = deque()
        if not processes.is_first():
            return
        self._check_settings(settings)
        with self._writing():
            self._store.make()
            write_json(self.path / "samples.json", settings)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="write samples")

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

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot write samples to {self.path}: {error.strerror or error}") from error

    def missing(self, num: int) -> list[int]:
        """Return those of the first `num` samples that are not on disk, or not intact, in order."""
        there = self._store.intact(num) if processes.is_first() else set()
        return processes.agreed([index for index in range(num) if index not in there])

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

    def finish(self, num: int, labels: np.ndarray | None = None) -> Path:
        """Wait for the writers, join what is to be joined, draw the grid of images.

        Args:
          labels: int [num], recorded beside the samples.

        Returns:
          The path of the grid, or of the folder where samples are no pictures.
        """
        picture = self.path / "grid.png"
        if self._pool is not None:
            self.flush()
            with self._writing():
                self._store.finish(num, labels)
                if self._spec.kind == "image":
                    first = self._store.read(min(num, _GRID))
                    arranged = by_class(first, None if labels is None else np.asarray(labels)[: len(first)])
                    write_image(picture, tile(*arranged, scale=max(1, 64 // first.shape[1])))
        processes.barrier(f"samples in {self.path}")
        return picture if self._spec.kind == "image" else self.path

    def close(self) -> None:
        """Let the writers end; what was added but not yet written is written."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def __enter__(self) -> SampleFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_DAMAGED = (OSError, SyntaxError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""How PIL, numpy and zipfile report files that are not what they should be."""

_BLOCK = 1024  # rows in memory at a time when parts are joined


class PngStore:
    """`000000.png`, `000001.png`, ..., and `labels.json` when all are there."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape

    def make(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, index: int) -> Path:
        """Where a sample lies."""
        return self.folder / f"{index:06d}.png"

    def intact(self, num: int) -> set[int]:
        """Which of the first `num` samples are there, read and checked."""
        names = {entry.name for entry in os.scandir(self.folder)}
        candidates = [index for index in range(num) if self.path(index).name in names]
        with ThreadPoolExecutor() as pool:
            verdicts = pool.map(self._is_intact, candidates)
            return {index for index, good in zip(candidates, verdicts, strict=True) if good}

    def _is_intact(self, index: int) -> bool:
        try:
            return read_image(self.path(index)).shape == self.shape
        except _DAMAGED:
            return False

    def write(self, indices: np.ndarray, samples: np.ndarray) -> None:
        """Write samples."""
        for index, image in zip(indices, samples, strict=True):
            write_image(self.path(int(index)), image)

    def finish(self, num: int, labels: np.ndarray | None) -> None:
        """Record the labels of all samples."""
        if labels is not None:
            write_json(self.folder / "labels.json", np.asarray(labels).tolist())

    def read(self, num: int) -> np.ndarray:
        """The first `num` samples, uint8 [num, H, W, C]."""
        return np.stack([read_image(self.path(index)) for index in range(num)])


class NpzStore:
    """`samples.npz` with arr_0 [N, ...] and arr_1 int [N]; while it grows, runs of samples under `parts/`."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape

    def make(self) -> None:
        """Make the folder, and that of parts."""
        self.parts.mkdir(parents=True, exist_ok=True)

    @property
    def parts(self) -> Path:
        """The folder of parts, each of consecutive samples and named by its first."""
        return self.folder / "parts"

    @property
    def whole(self) -> Path:
        """The joined file."""
        return self.folder / "samples.npz"

    def _joined(self) -> tuple[int, np.dtype]:
        """(how many samples the joined file holds, 0 if it is not there or damaged; their dtype)."""
        nothing = 0, np.dtype(np.uint8)
        if not self.whole.exists():
            return nothing
        try:
            with zipfile.ZipFile(self.whole) as archive:
                if archive.testzip() is not None:
                    return nothing
                with archive.open("arr_0.npy") as file:
                    shape, dtype = _header(file)
        except _DAMAGED:
            return nothing
        return (shape[0], dtype) if shape[1:] == self.shape else nothing

    def _intact_parts(self) -> dict[Path, range]:
        """The readable parts in order of their samples, which do not overlap."""
        found = {}
        for path in sorted(self.parts.glob("*.npz")):
            try:
                with np.load(path) as part:  # reading checks the sums
                    shape = part["images"].shape
            except _DAMAGED:
                continue  # its samples are drawn again
            if shape[1:] == self.shape:
                first = int(path.stem)
                found[path] = range(first, first + shape[0])
        return found

    def intact(self, num: int) -> set[int]:
        """Which samples are there, read and checked."""
        return set(range(self._joined()[0])).union(*self._intact_parts().values())

    def write(self, indices: np.ndarray, samples: np.ndarray) -> None:
        """Write samples, a part for each run of consecutive ones."""
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        for rows in np.split(np.arange(len(indices)), breaks):
            with replacing(self.parts / f"{int(indices[rows[0]]):09d}.npz") as temporary:
                with open(temporary, "wb") as file:
                    np.savez(file, images=samples[rows])

    def finish(self, num: int, labels: np.ndarray | None) -> None:
        """Join all parts, a block at a time, and remove them."""
        parts, (joined, dtype) = self._intact_parts(), self._joined()
        total = max([joined, *(span.stop for span in parts.values())])
        for path in list(parts)[:1]:
            with np.load(path) as part:
                dtype = part["images"].dtype
        if parts or not self.whole.exists():
            with replacing(self.whole) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (total, *self.shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    for block in self._joined_blocks(joined):
                        file.write(block.tobytes())
                    for path in parts:
                        with np.load(path) as part:
                            file.write(part["images"].tobytes())
                if labels is not None:
                    with archive.open("arr_1.npy", "w") as file:
                        np.lib.format.write_array(file, np.asarray(labels))
        for path in self.parts.iterdir():
            path.unlink()
        self.parts.rmdir()

    def _joined_blocks(self, count: int) -> Iterator[np.ndarray]:
        """The first `count` rows of the joined file."""
        if not count:
            return
        with zipfile.ZipFile(self.whole) as archive, archive.open("arr_0.npy") as file:
            dtype = _header(file)[1]
            for start in range(0, count, _BLOCK):
                shape = (min(_BLOCK, count - start), *self.shape)
                yield np.frombuffer(file.read(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)

    def read(self, num: int) -> np.ndarray:
        """Return the first `num` samples of the joined file, [num, ...]."""
        return np.concatenate(list(self._joined_blocks(num)))


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) in the header of an open .npy file, which is left at its data."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


_ANYTHING: dict[str, Any] = {"npz": NpzStore}
WRITERS: dict[str, dict[str, Any]] = {"image": {"png": PngStore, "npz": NpzStore}}
"""The formats in which samples of a kind are written, the usual one first; other kinds are written as npz."""
