"""What results are told apart by: digests of settings, and checksums of parameters wherever they lie."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import processes

_NUMBERS = 2**20  # that are mixed at a time
_MIX = tuple(np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def digest(described: Any, length: int = 16) -> str:
    """Return the first hexadecimal digits of the SHA-256 of JSON data, whatever the order of their keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:length]


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Return how two settings differ, a line for each value.

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


def versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def code() -> dict[str, str]:
    """Return a digest of each source file of this package, by its path in it."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}


def of_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's `data` section without what does not change its examples, as JSON data."""
    return {**config, "batch_size": None}


def checksum(params: Any) -> str:
    """Return 64 hexadecimal digits of the values, names, dtypes and shapes of parameters.

    The sum over a leaf is one of integers, so that it is the same on any mesh and any number of processes, and no leaf is
    ever gathered. Every process must call it where the parameters lie on several.

    >>> checksum({"a": np.zeros(3)}) == checksum({"a": np.zeros(3)}) != checksum({"b": np.zeros(3)})
    True
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    sums = np.array([_sum(leaf) for _, leaf in leaves], np.uint64)
    if any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for _, leaf in leaves):
        sums = processes.gather(sums).sum(0, dtype=np.uint64)
    whole = hashlib.sha256()
    for (path, leaf), total in zip(leaves, sums, strict=True):
        whole.update(f"{jax.tree_util.keystr(path)} {np.dtype(leaf.dtype)} {tuple(leaf.shape)} {int(total)};".encode())
    return whole.hexdigest()


def _sum(leaf: Any) -> int:
    """The sum modulo 2**64 of this process's numbers, each mixed with its place in the whole leaf."""
    shape = np.shape(leaf) or (1,)
    strides = np.cumprod((1, *shape[:0:-1]), dtype=np.uint64)[::-1]
    total = 0
    for starts, block in _blocks(leaf):
        block = np.ascontiguousarray(block).reshape(block.shape or (1,))
        axes = [
            (np.arange(size, dtype=np.uint64) + np.uint64(start)) * stride
            for start, size, stride in zip(starts or (0,), block.shape, strides, strict=True)
        ]
        inner = functools.reduce(np.add.outer, axes[1:], np.uint64(0))
        bits, rows = block.view(f"u{block.dtype.itemsize}"), max(1, _NUMBERS // max(1, inner.size))
        for first in range(0, len(bits), rows):
            part = slice(first, first + rows)
            total += _mixed(bits[part], np.add.outer(axes[0][part], inner))
    return total % 2**64


def _blocks(leaf: Any) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(where it begins, values) of each part of a leaf that this process answers for; no part is in two."""
    if not isinstance(leaf, jax.Array):
        yield (0,) * np.ndim(leaf), np.asarray(leaf)
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield tuple(index.start or 0 for index in shard.index), np.asarray(shard.data)


def _mixed(bits: np.ndarray, places: np.ndarray) -> int:
    mixed = (bits.astype(np.uint64) + _MIX[0] * (places + np.uint64(1))) * _MIX[1]
    mixed ^= mixed >> np.uint64(31)
    mixed *= _MIX[2]
    return int((mixed ^ (mixed >> np.uint64(29))).sum(dtype=np.uint64))
