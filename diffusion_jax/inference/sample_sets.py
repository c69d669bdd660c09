"""Images to be evaluated, whatever made them: a folder of image files, one npz, or arrays; read a batch at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.data.files import read_image
from diffusion_jax.errors import DataError
from diffusion_jax.files import read_json, user_path
from diffusion_jax.inference import manifest
from diffusion_jax.inference.stores import NpzStore, PngStore

_RECORDS = ("samples.json", "edit.json")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_DAMAGED = (OSError, SyntaxError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_UNREADABLE = (*_DAMAGED, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Images of one size.

    Attributes:
      name: where they come from, for messages and reports.
      count: how many.
      shape: (H, W, C), C = 1 or 3.
      read: () -> an iterator over all images in order, in blocks uint8 [n, H, W, C].
      labels: int [count], or None.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    read: Callable[[], Iterator[np.ndarray]]
    labels: np.ndarray | None = None

    def batches(self, size: int, limit: int | None = None) -> Iterator[np.ndarray]:
        """Yield the images in order, uint8 [size, H, W, C]; the last batch may be short.

        Args:
          limit: stop after this many images.
        """
        left = self.count if limit is None else min(limit, self.count)
        held: list[np.ndarray] = []
        for block in self.read():
            block = block[:left]
            left -= len(block)
            held.append(block)
            if sum(map(len, held)) < size and left:
                continue
            joined = np.concatenate(held)
            whole = len(joined) if not left else len(joined) // size * size
            yield from (joined[start : min(start + size, whole)] for start in range(0, whole, size))
            held = [joined[whole:]]
            if not left:
                return

    def head(self, num: int) -> np.ndarray:
        """Return the first images, uint8 [num, H, W, C]."""
        return next(self.batches(min(num, self.count), limit=num))


def from_arrays(images: np.ndarray, labels: np.ndarray | None = None, name: str = "arrays") -> SampleSet:
    """A set of images in memory, uint8 [N, H, W, C].

    Raises:
      DataError: another dtype or shape, as for files.
    """
    _check_array(name, images.dtype, images.shape)
    return SampleSet(name, len(images), images.shape[1:], lambda: iter([images]), labels)


def open_samples(path: str | os.PathLike) -> SampleSet:
    """The images of a folder (png, jpeg, webp, bmp, in sub-folders too) or of an npz (arr_0, and arr_1 for labels).

    Folders of `diffusion_jax.sample` and `diffusion_jax.edit` are known by their record of settings, and must be complete and
    as they were written. Labels are those of labels.json, or of arr_1.

    Raises:
      DataError: nothing there, no images, images of several sizes, of 16 bits, with alpha or of floating numbers, a damaged
        file, a folder whose sampling was interrupted or whose files were changed since; the message names the file.
    """
    path = user_path(path)
    if not path.exists():
        raise DataError(f"no samples at {path}: it does not exist")
    if not path.is_dir():
        return _open_npz(path)
    record = next((name for name in _RECORDS if (path / name).exists()), None)
    return _open_folder(path) if record is None else _open_own(path, record)


def count_duplicates(samples: SampleSet, limit: int | None = None) -> int:
    """How many images equal an earlier one in every pixel."""
    seen: set[bytes] = set()
    total = 0
    for batch in samples.batches(256, limit):
        seen.update(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in batch)
        total += len(batch)
    return total - len(seen)


def _natural(path: Path) -> list[Any]:
    """Sorts img2 before img10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.as_posix())]


def _open_own(path: Path, record: str) -> SampleSet:
    """The samples of this library's programs."""
    count, sums = manifest.completed(path, record)
    names = [PngStore.name(index) for index in range(count)]
    if names[0] not in sums:
        _check_own(path / NpzStore.WHOLE, sums)
        return _open_npz(path / NpzStore.WHOLE)
    for name in names:
        if not (path / name).exists():
            raise DataError(f"{path / name} is missing: give the same command again to make it")
    labels = None
    if "labels.json" in sums:
        _check_own(path / "labels.json", sums)
        labels = np.asarray(read_json(path / "labels.json", f"the labels of {count} samples", list, check=_labels_of(count)))

    def read_file(file: Path) -> np.ndarray:
        _check_own(file, sums)
        return _read_file(file)

    return _of_files(path, [path / name for name in names], read_file, labels)


def _labels_of(count: int) -> Callable[[Any], str | None]:
    return lambda found: (
        None if len(found) == count and all(type(x) is int for x in found) else f"{count} whole numbers are needed"
    )


def _check_own(file: Path, sums: Mapping[str, set[str]]) -> None:
    """Raise a `DataError` unless a file is as it was written."""
    try:
        good = manifest.checksum(file) in sums.get(file.name, ())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): give the same command again to make it") from error
    if not good:
        raise DataError(f"{file} is not as it was written: remove it, and give the same command again to make it")


def _open_folder(path: Path) -> SampleSet:
    files = sorted((p for p in path.rglob("*") if p.suffix.lower() in _ENDINGS and not p.name.startswith(".")), key=_natural)
    if not files:
        raise DataError(f"no images in {path}: looked for {', '.join(_ENDINGS)} in it and in its sub-folders")
    return _of_files(path, files, _read_file, None)


def _of_files(path: Path, files: list[Path], read_file: Callable[[Path], np.ndarray], labels: np.ndarray | None) -> SampleSet:
    shape = read_file(files[0]).shape

    def read() -> Iterator[np.ndarray]:
        for start in range(0, len(files), 64):
            images = [read_file(file) for file in files[start : start + 64]]
            for file, image in zip(files[start : start + 64], images, strict=True):
                if image.shape != shape:
                    raise DataError(f"{file} is {_size(image.shape)}, but {files[0]} is {_size(shape)}: all must agree")
            yield np.stack(images)

    return SampleSet(str(path), len(files), shape, read, labels)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} with {shape[2]} channel{'s' * (shape[2] > 1)}"


def _read_file(path: Path) -> np.ndarray:
    """The pixels of an image, uint8 [H, W, 1 or 3]."""
    try:
        with Image.open(path) as image:
            mode = image.mode
        if mode in ("P", "1", "CMYK"):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        else:
            pixels = read_image(path)
    except _UNREADABLE as error:
        raise DataError(f"{path} is damaged or not an image ({error}); make it again or remove it") from error
    if pixels.shape[-1] in (2, 4):
        raise DataError(f"{path} has an alpha channel: flatten it onto the background that you mean first")
    if pixels.dtype != np.uint8:
        raise DataError(f"{path} has {pixels.dtype} pixels (mode {mode}): save it with 8 bits a channel")
    return pixels


def _open_npz(path: Path) -> SampleSet:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            key = "arr_0.npy" if "arr_0.npy" in names else names[0] if len(names) == 1 else None
            if key is None:
                raise DataError(f"{path} holds {', '.join(names) or 'nothing'}: images are looked for under arr_0")
            with archive.open(key) as file:
                shape, fortran, dtype = _header(file)
            labels = np.lib.format.read_array(archive.open("arr_1.npy")) if "arr_1.npy" in names else None
        _check_array(str(path), dtype, shape)
    except _UNREADABLE as error:
        raise DataError(f"{path} is empty, truncated or not an npz ({error}); make it again") from error
    if fortran:
        raise DataError(f"{path}: arr_0 is in Fortran order; save it with numpy.ascontiguousarray")

    def read() -> Iterator[np.ndarray]:
        rows = max(1, 2**24 // int(np.prod(shape[1:])))
        try:
            with zipfile.ZipFile(path) as archive, archive.open(key) as file:
                _header(file)
                for start in range(0, shape[0], rows):
                    block = (min(rows, shape[0] - start), *shape[1:])
                    yield np.frombuffer(file.read(int(np.prod(block))), np.uint8).reshape(block)
        except _UNREADABLE as error:
            raise DataError(f"{path} is damaged ({error}); make it again") from error

    labels = None if labels is None or len(labels) != shape[0] or labels.ndim != 1 else labels
    return SampleSet(str(path), shape[0], tuple(shape[1:]), read, labels)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of an open .npy file, which is left at its data."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _check_array(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if len(shape) == 4 and shape[-1] in (2, 4):
        raise DataError(f"{name}: images of the shape {shape} have an alpha channel; flatten it first")
    if len(shape) != 4 or shape[-1] not in (1, 3) or not shape[0]:
        raise DataError(f"{name}: images must be [N, H, W, 1 or 3] with N > 0, got the shape {shape}")
    if dtype != np.uint8:
        raise DataError(
            f"{name}: images must be uint8 from 0 to 255, got {dtype}; for x in [-1, 1], "
            "numpy.clip((x + 1) * 127.5 + 0.5, 0, 255).astype('uint8'), after looking for NaN"
        )
