"""Files of arrays (.npz) of a person's: looked at by their headers before memory is asked for, and never unpickled."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable

import numpy as np

from diffusion_jax.errors import DataError
from diffusion_jax.files import reason

MOST_BYTES = 2**34
"""Of all arrays that are read from one file."""


def read_npz(
    path: str | os.PathLike, what: str, *, wanted: Callable[[str], bool] = lambda name: True, most: int = MOST_BYTES
) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; whatever is wrong with it is one line.

    Args:
      what: what the file is, such as "statistics".
      wanted: name -> whether an array is read.
      most: bytes that the arrays may take together.

    Raises:
      DataError: a file that is missing, damaged or no .npz, arrays of objects (which would be unpickled), or arrays that claim
        more bytes than the file has or than `most`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            entries = {name: entry for name, entry in entries.items() if wanted(name)}
            total = sum(_bytes(archive, name, entry) for name, entry in entries.items())
            if total > most:
                raise ValueError(f"its arrays claim {total:,} bytes, more than {most:,}")
            return {name: _read(archive, entry) for name, entry in entries.items()}
    except Exception as error:  # damaged archives fail in many ways
        raise DataError(f"{path} cannot be read as {what}, an npz: {reason(error)}") from error


def _bytes(archive: zipfile.ZipFile, name: str, entry: zipfile.ZipInfo) -> int:
    """What an array takes in memory, as its header says."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(entry) as file:
        shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
        there = entry.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not loaded")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != there:
        raise ValueError(f"{name} of shape {shape} claims {claimed:,} bytes, and has {there:,}: it may be truncated")
    return claimed


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
