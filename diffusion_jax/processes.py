"""Several processes that are one job: which one writes, what all agree on, and arrays of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax import errors
from diffusion_jax.errors import DiffusionError

_BYTES = 64 * 2**20  # of all processes, gathered at a time


def is_first() -> bool:
    """Return whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """Return the first process's JSON data on every process; all must call it. What disks show may differ between hosts."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode() if is_first() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, size) if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def by_first(work: Callable[[], Any]) -> Any:
    """Return, on every process, the JSON data that `work` gives on the first, which alone does it.

    Raises:
      DiffusionError: what `work` raises on the first process, on every process.
    """
    found, kind, text = None, "", ""
    if is_first():
        try:
            found = work()
        except DiffusionError as error:
            if jax.process_count() == 1:
                raise
            kind, text = type(error).__name__, str(error)
    found, kind, text = agreed([found, kind, text])
    if kind:
        raise getattr(errors, kind, DiffusionError)(text)
    return found


def barrier(name: str) -> None:
    """Wait until every process is here: before one reads what another wrote."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(values: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, [P, ...], on every process; all must call it with one shape and dtype.

    They travel as words of 32 bits, since jax without x64 would make float32 of float64.
    """
    values = np.ascontiguousarray(values)
    if jax.process_count() == 1:
        return values[None]
    words = multihost_utils.process_allgather(values.view(np.uint32))
    return np.ascontiguousarray(words).view(values.dtype).reshape(-1, *values.shape)


def gather_rows(values: np.ndarray) -> np.ndarray:
    """Return the sum of the arrays [N, ...] of all processes, in slices so that memory does not grow with their number."""
    if jax.process_count() == 1:
        return values
    step = max(1, _BYTES // max(1, values[:1].nbytes * jax.process_count()))
    return np.concatenate([gather(values[at : at + step]).sum(0) for at in range(0, len(values), step)])
