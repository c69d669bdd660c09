"""Arrays of a person's: what a file claims is checked by its headers, before memory is asked for."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from diffusion_jax.errors import DataError
from diffusion_jax.npz import read_npz


def _claiming(path, shape, body=b"\0" * 64):
    """An npz with an array that claims a shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", header.getvalue() + body)


def _truncated(path):
    np.savez(path, mu=np.zeros(100))
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path):
    np.savez(path, mu=np.zeros(100))
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)


CASES = {
    "a shape of 10^12": (lambda path: _claiming(path, (10**12,)), "claims 8,000,000,000,000 bytes, and has 64"),
    "negative sizes": (lambda path: _claiming(path, (-1, -8)), "cannot be read"),
    "pickled objects": (lambda path: np.savez(path, mu=np.array([{}], object)), "pickled objects, which are not loaded"),
    "a single array": (lambda path: np.save(path.open("wb"), np.zeros(3)), "not a zip file"),
    "garbage": (lambda path: path.write_bytes(b"\x93NUMPY\xff\x00"), "cannot be read"),
    "nothing": (lambda path: path.write_bytes(b""), "not a zip file"),
    "truncated": (_truncated, "cannot be read"),
    "a flipped bit": (_flipped, "Bad CRC-32"),
    "a directory": (lambda path: path.mkdir(), "Is a directory"),
    "too much": (lambda path: np.savez_compressed(path, mu=np.zeros(10_001)), "claim 80,008 bytes, more than 80,000"),
    "not there": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_a_file_is_one_line(case, tmp_path):
    make, message = CASES[case]
    path = tmp_path / "a.npz"
    make(path)
    with pytest.raises(DataError, match=message) as raised:
        read_npz(path, "statistics", most=80_000)
    assert str(raised.value).startswith(f"{path} cannot be read as statistics") and "\n" not in str(raised.value)


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(["x", "yz"]), "c": np.asfortranarray(np.eye(3))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz", "arrays", wanted={"a", "b", "c"}.__contains__)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert list(read_npz(tmp_path / "a.npz", "arrays", wanted=lambda name: name == "b")) == ["b"]
