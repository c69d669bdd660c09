"""Asking a run to stop: SIGTERM from a scheduler, Ctrl-C from a terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second Ctrl-C interrupts at once.

    With several processes the signals are left alone: there a stop must come to all of them at the same step, which
    JAX's own notifier sees to (`Checkpointer.reached_preemption`). Signals also reach only the main thread of a program.
    """
    stop = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
