"""Arrays out of a pickle without running what else a pickle may hold."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import DataError

_ARRAY_PARTS = ("_reconstruct", "_frombuffer")  # what numpy's own pickles of arrays call


def _dtype(kind: str, *_: Any) -> np.dtype:
    if np.dtype(kind).kind not in "fiub":
        raise pickle.UnpicklingError(f"an array of type {kind}, which is no number")
    return np.dtype(kind, copy=True)


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays of numbers and plain containers; every other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("numpy.core.", "numpy._core.")) and name in _ARRAY_PARTS:
            owner = np._core.multiarray if name == "_reconstruct" else np._core.numeric
            return getattr(owner, name)
        allowed = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): _dtype, ("_codecs", "encode"): codecs.encode}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}, and only arrays are allowed")
        return allowed[module, name]


def load_entry(path: Path, entry: str) -> dict[str, np.ndarray]:
    """The arrays of one entry of a dictionary of dictionaries, such as {"fid": {"mu": ..., "sigma": ...}}.

    Raises:
      DataError: no such entry, anything but arrays of numbers and plain values in the file, or a damaged file.
    """
    try:
        with open(path, "rb") as file:
            found = _ArraysOnly(file).load()
    except Exception as error:  # damaged pickles fail in many ways
        raise DataError(f"{path} cannot be read as statistics: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get(entry), dict):
        entries = ", ".join(sorted(map(str, found))) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{path} has no statistics {entry!r} (it has: {entries})")
    return {name: value for name, value in found[entry].items() if isinstance(value, np.ndarray)}
