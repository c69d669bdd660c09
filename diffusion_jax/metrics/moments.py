"""Means and covariances of features that lie on many devices and hosts, in float64 and without jax's x64 mode.

Features leave the device as float32 and are summed up by their own host in float64 numpy. It costs about D^2 operations
a row, one part in a thousand of the network that made the row, runs while the device works on the next batch, and needs
no tricks: sums of float32 products cut into exact pieces on the device were the alternative, with ten products of
matrices for one. What one device, eight devices and two processes add up differs by the rounding of float64 alone.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.errors import DataError
from diffusion_jax.metrics.frechet import Moments, warn_if_few

__all__ = ["Moments", "add_features", "local_rows", "merge_processes", "warn_if_few"]

_GATHERED_BYTES = 64 * 2**20  # of all processes at a time


def local_rows(features: Any) -> np.ndarray:
    """The rows of a batch that this process answers for, each row of the batch by exactly one process.

    Args:
      features: [N, ...]; numpy, or a `jax.Array` sharded over its first axis alone (replicas are fine), over any
        number of devices and processes.

    Returns:
      numpy [n, ...], in order; all of them where there is one process.

    Raises:
      DataError: an array sharded over another axis.
    """
    if not isinstance(features, jax.Array) or features.is_fully_addressable:
        return np.asarray(features)
    parts = {}
    for shard in features.addressable_shards:
        if any(index != slice(None) for index in shard.index[1:]):
            raise DataError(f"features must be sharded over their rows alone, got {features.sharding}")
        if shard.replica_id == 0:
            parts[shard.index[0].start or 0] = np.asarray(shard.data)
    if not parts:
        return np.zeros((0, *features.shape[1:]), features.dtype)
    return np.concatenate([parts[start] for start in sorted(parts)])


def add_features(moments: Moments, features: Any, mask: Any = None) -> Moments:
    """Take in this process's rows of a batch.

    Args:
      moments: of this process; `merge_processes` adds those of all.
      features: [N, D], as `local_rows` takes them.
      mask: bool [N], sharded like the features: which rows count. The rest are padding.

    Returns:
      The moments, changed.
    """
    rows = local_rows(features)
    return moments.add(rows if mask is None else rows[local_rows(mask).astype(bool)])


def merge_processes(moments: Moments) -> Moments:
    """The moments of what all processes have seen, the same on every process to the last bit.

    Every process must call it. Scatter matrices travel in slices, so that the memory of a process does not grow with
    their number.

    Raises:
      DataError: features of different widths, on every process.
    """
    if jax.process_count() == 1:
        return moments
    counts, widths = _gather(np.array([moments.count, np.size(moments.mean) if moments.count else 0], np.int64)).T
    if len(set(widths[counts > 0])) > 1:
        raise DataError(f"features of different widths on the processes: {sorted(set(widths[counts > 0].tolist()))}")
    total, width = int(counts.sum()), int(widths.max())
    if not total:
        return Moments()
    means = _gather(np.asarray(moments.mean, np.float64) if moments.count else np.zeros(width))
    mean = (counts[:, None] / total * means).sum(0)
    between = means - mean
    scatter = (between * counts[:, None]).T @ between
    own = moments.scatter if moments.count else np.zeros((width, width))
    step = max(1, _GATHERED_BYTES // (8 * width * len(counts)))
    for start in range(0, width, step):
        scatter[start : start + step] += _gather(own[start : start + step]).sum(0)
    return Moments(total, mean, scatter)


def _gather(values: np.ndarray) -> np.ndarray:
    """[P, ...] of all processes. As pairs of 32 bits, since jax without x64 would make float32 of float64."""
    values = np.ascontiguousarray(values)
    words = multihost_utils.process_allgather(values.view(np.uint32))
    return np.ascontiguousarray(words).view(values.dtype).reshape(-1, *values.shape)
