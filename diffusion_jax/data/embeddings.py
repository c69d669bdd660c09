"""Text embeddings made beforehand, by the file name of the image that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.errors import DataError, nearest

PARTS = {"tokens": "text", "mask": "text_mask", "pooled": "text_pooled"}
"""Name in the file -> name in an example."""


class Embeddings(Mapping[str, dict[str, np.ndarray]]):
    """File name -> {"text": [L, D], "text_mask": bool [L], and where there is one "text_pooled": [D']}.

    Args:
      path: an npz file with the arrays file_name [N] of strings, tokens [N, L, D] float16 or float32, mask [N, L], and
        perhaps pooled [N, D']; or a folder with one npy file for each (file_name.npy, tokens.npy, ...), which are read
        from disk as they are needed.

    Raises:
      DataError: nothing there, arrays missing or of lengths that differ, a file name twice.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser()
        arrays = self._read()
        for name in ("file_name", "tokens", "mask"):
            if name not in arrays:
                raise DataError(f"{self._path}: the array {name!r} is missing (has: {', '.join(sorted(arrays)) or 'none'})")
        names = [str(name) for name in arrays.pop("file_name")]
        self._arrays = {PARTS[name]: array for name, array in arrays.items() if name in PARTS}
        tokens, mask = self._arrays["text"], self._arrays["text_mask"]
        lengths = {name: len(array) for name, array in arrays.items() if name in PARTS}
        if set(lengths.values()) != {len(names)} or tokens.ndim != 3 or mask.shape != tokens.shape[:2]:
            shapes = {name: arrays[name].shape for name in lengths}
            raise DataError(
                f"{self._path}: needs tokens [N, L, D] and mask [N, L] for its {len(names)} file names, but has {shapes}"
            )
        if tokens.dtype.kind != "f":
            raise DataError(f"{self._path}: tokens must be float16 or float32, got {tokens.dtype}")
        self._rows = {name: row for row, name in enumerate(names)}
        if len(self._rows) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self._path}: the file name {twice!r} is there twice")

    def _read(self) -> dict[str, np.ndarray]:
        try:
            if self._path.is_dir():
                return {file.stem: np.load(file, mmap_mode="r") for file in sorted(self._path.glob("*.npy"))}
            with np.load(self._path) as arrays:
                return dict(arrays)
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"cannot read text embeddings from {self._path} ({error}); an npz with file_name, tokens and mask is needed"
            ) from error

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterable[str]:
        return iter(self._rows)

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        row = self._rows[name]
        found = {key: np.array(array[row]) for key, array in self._arrays.items()}
        return {**found, "text_mask": found["text_mask"].astype(bool)}

    def check(self, names: Iterable[str]) -> None:
        """Raise a `DataError` that names the first image without an embedding."""
        missing = [name for name in names if name not in self._rows]
        if missing:
            hint = nearest(missing[0], self._rows)
            raise DataError(f"{self._path} has no embedding of {len(missing)} images, such as {missing[0]!r}{hint}")
