"""Several processes that are one job: which one writes, what all agree on, and arrays of all of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from diffusion_jax import errors
from diffusion_jax.errors import DiffusionError


class LostPeer(RuntimeError):
    """Another process of this job did not come, or has gone."""


_DAY = 24 * 3600 * 1000  # in ms; how long peers are waited for: one that dies ends the wait, through its heartbeat
_FAILURE = "diffusion_jax/failure"
_rounds = itertools.count()
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
    found: list[Any] = []
    decide(None, lambda _: found.append(work()))  # which hands on errors; the indices of many samples are too long for it
    return agreed(found[0] if found else None)


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


def decide(mine: Any, rule: Callable[[list[Any]], Any]) -> Any:
    """Let the first process decide on the JSON data of all, and return its decision, JSON data, on every process.

    All must call it, in the same order. Nothing is compiled for it, and no device is touched.

    Args:
      mine: this process's data.
      rule: [data of process 0, data of process 1, ...] -> the decision; called on the first process alone.

    Raises:
      DiffusionError: on every process, where `rule` raises one.
    """
    client, here, count = (getattr(distributed.global_state, name) for name in ("client", "process_id", "num_processes"))
    if client is None:
        return rule([mine])
    key = f"diffusion_jax/decide/{next(_rounds)}"
    client.key_value_set(f"{key}/{here}", json.dumps(mine))
    if here == 0:
        given = [json.loads(client.blocking_key_value_get(f"{key}/{number}", _DAY)) for number in range(count)]
        try:
            answer = {"decision": rule(given)}
        except DiffusionError as error:
            client.key_value_set(f"{key}/answer", json.dumps({"error": [type(error).__name__, str(error)]}))
            raise
        client.key_value_set(f"{key}/answer", json.dumps(answer))
        return answer["decision"]
    answer = json.loads(client.blocking_key_value_get(f"{key}/answer", _DAY))
    if "error" in answer:
        kind, text = answer["error"]
        raise getattr(errors, kind, DiffusionError)(text)
    return answer["decision"]


def check_alike(what: str, mine: Mapping[str, Any]) -> None:
    """Raise a `DiffusionError` on every process unless all give the same JSON data; the first difference is named.

    Args:
      what: what is compared, such as "the configuration".
    """

    def compare(given: Sequence[Mapping[str, Any]]) -> None:
        first = dict(_leaves(given[0]))
        for number, other in enumerate(given):
            found = dict(_leaves(other))
            for path in [*first, *found]:
                a, b = first.get(path, "absent"), found.get(path, "absent")
                if a != b:
                    raise DiffusionError(
                        f"the processes differ in {what}: {path} is {a!r} in process 0, {b!r} in process {number}; "
                        "start all with the same command, code and data"
                    )

    decide(mine, compare)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def tell_failure(error: str) -> None:
    """Tell the peers, if there are any, why this process ends; the first one, which they hear it from, gives them a moment."""
    state = distributed.global_state
    if state.client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or the first process is gone
            state.client.key_value_set(_FAILURE, f"process {state.process_id}: {error}")
        time.sleep(1.5 if state.process_id == 0 else 0)


def failure_told() -> str | None:
    """Return what a peer has said, by now, when it ended by a mistake."""
    try:
        return distributed.global_state.client.key_value_try_get(_FAILURE)
    except jax.errors.JaxRuntimeError:
        return None


def wait_for_failure() -> str:
    """Return what a peer says when it ends by a mistake; waits as long as this process has peers, and then for ever."""
    client = distributed.global_state.client
    while True:
        try:
            return client.blocking_key_value_get(_FAILURE, _DAY)
        except jax.errors.JaxRuntimeError:
            time.sleep(1.0)


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error says that another process of this job has gone."""
    signs = ("Gloo", "heartbeat", "Socket closed", "Connection reset", "Connection closed", "coordination service", "unhealthy")
    return distributed.global_state.client is not None and any(sign in str(error) for sign in signs)
