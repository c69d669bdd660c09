"""The formats in which samples lie in a folder: an image file each, or one npz."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from diffusion_jax.data.files import png_of, read_image
from diffusion_jax.inference.manifest import Manifest

_BLOCK = 1024  # rows in memory at a time when parts are joined


class PngStore:
    """`000000.png`, `000001.png`, ..., and `labels.json` when all are there."""

    def __init__(self, manifest: Manifest, shape: tuple[int, ...]) -> None:
        self.manifest = manifest

    @staticmethod
    def name(index: int) -> str:
        """Return the name of a sample's file."""
        return f"{index:06d}.png"

    def write(self, indices: np.ndarray, samples: np.ndarray) -> None:
        """Write samples."""
        pairs = zip(map(int, indices), samples, strict=True)
        self.manifest.put((self.name(index), png_of(image), {"first": index, "count": 1}) for index, image in pairs)

    def finish(self, num: int, labels: np.ndarray | None) -> None:
        """Record the labels of all samples."""
        if labels is not None:
            text = json.dumps(np.asarray(labels).tolist(), indent=2) + "\n"
            self.manifest.put([("labels.json", text.encode(), {})])

    def read(self, num: int) -> np.ndarray:
        """The first `num` samples, uint8 [num, H, W, C]."""
        return np.stack([read_image(self.manifest.folder / self.name(index)) for index in range(num)])


class NpzStore:
    """`samples.npz` with arr_0 [N, ...] and arr_1 int [N]; while it grows, runs of samples under `parts/`."""

    WHOLE = "samples.npz"

    def __init__(self, manifest: Manifest, shape: tuple[int, ...]) -> None:
        self.manifest, self.shape = manifest, shape
        self.parts, self.whole = manifest.folder / "parts", manifest.folder / self.WHOLE

    def write(self, indices: np.ndarray, samples: np.ndarray) -> None:
        """Write samples, a part for each run of consecutive ones."""
        self.parts.mkdir(exist_ok=True)
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        self.manifest.put(self._part(indices[rows], samples[rows]) for rows in np.split(np.arange(len(indices)), breaks))

    def _part(self, indices: np.ndarray, samples: np.ndarray) -> tuple[str, bytes, dict[str, int]]:
        content = io.BytesIO()
        np.savez(content, images=samples)
        first = int(indices[0])
        return f"parts/{first:09d}.npz", content.getvalue(), {"first": first, "count": len(samples)}

    def finish(self, num: int, labels: np.ndarray | None) -> None:
        """Join all parts, a block at a time, and remove them."""
        intact = self.manifest.intact
        parts = sorted((line for name, line in intact.items() if name.startswith("parts/")), key=lambda line: line["first"])
        joined = intact[self.WHOLE]["count"] if self.WHOLE in intact else 0
        if joined < num:
            with self.manifest.putting(self.WHOLE, {"first": 0, "count": num}) as temporary:
                with zipfile.ZipFile(temporary, "w") as archive:
                    self._join(archive, num, joined, parts)
                    if labels is not None:
                        with archive.open("arr_1.npy", "w") as file:
                            np.lib.format.write_array(file, np.asarray(labels))
        for line in parts:
            (self.manifest.folder / line["file"]).unlink()
            del intact[line["file"]]
        with contextlib.suppress(OSError):  # what else lies there is not ours
            self.parts.rmdir()

    def _join(self, archive: zipfile.ZipFile, num: int, joined: int, parts: list[dict[str, Any]]) -> None:
        """Write the first `num` samples: those of the joined file, and those of parts."""
        with np.load(self.manifest.folder / parts[0]["file"]) as part:
            header = {"descr": part["images"].dtype.str, "fortran_order": False, "shape": (num, *self.shape)}
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._joined_blocks(joined):
                file.write(block.tobytes())
            for line in parts:
                first, end = line["first"], line["first"] + line["count"]
                if end > joined:  # else its samples are there already
                    with np.load(self.manifest.folder / line["file"]) as part:
                        file.write(part["images"][joined - first :].tobytes())
                    joined = end

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


def writers_of(kind: str) -> dict[str, Any]:
    """Return the formats in which samples of a kind are written, the usual one first."""
    return WRITERS.get(kind, _ANYTHING)
