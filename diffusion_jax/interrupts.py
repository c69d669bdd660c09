"""Ctrl-C and SIGTERM, answered at once: also inside a compiler, where Python's own handlers wait for it to end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_GRACE = 5.0  # seconds, for a program to end by itself
_lock = threading.Lock()
_watching = False
_said: set[str] = set()
_answer: Callable[[int], None] = lambda number: None


def say(line: str) -> None:
    """Write a line to stderr at once, from any thread."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def say_interrupted(name: str) -> bool:
    """Say, once, that a program was interrupted; return whether it was not said before."""
    with _lock:
        if name in _said:
            return False
        _said.add(name)
        say(f"{name}: interrupted")
        return True


def leave_now(status: int) -> NoReturn:
    """Exit without waiting for threads or peers, which can take minutes and hold the devices; worker processes end too."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(status)


def watch(name: str) -> None:
    """Make Ctrl-C one line on stderr and exit status 130, within seconds, whatever the program is doing.

    The main thread gets its `KeyboardInterrupt` and may clean up; where it does not come out of foreign code in time, the
    process ends all the same. To be called by a program, in the main thread.

    Args:
      name: the program's, which begins the line.
    """
    global _watching, _answer

    def answer(number: int) -> None:
        if number == signal.SIGINT:
            if not say_interrupted(name):
                leave_now(INTERRUPTED)  # the second time
            timer = threading.Timer(_GRACE, leave_now, (INTERRUPTED,))
            timer.daemon = True
            timer.start()

    _answer = answer
    if not _watching:
        _watching = True
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(ours, pythons), name="signals", daemon=True).start()


def _listen(ours: socket.socket, pythons: socket.socket) -> None:
    """Answer each signal, whose number Python writes into `pythons` as soon as it comes."""
    while True:
        for number in ours.recv(16):
            _answer(number)


@contextlib.contextmanager
def stop_requests(message: str) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or Ctrl-C sets, which is said at once; a second Ctrl-C interrupts.

    In a program that is watched, the second Ctrl-C ends the process, with status 130. Signals reach the main thread of a program
    alone: in others the event is never set.

    Args:
      message: the line that says what is going to happen.
    """
    global _answer
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def answer(number: int) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            return
        if not stop.is_set():
            stop.set()
            say(message)
        elif number == signal.SIGINT:
            say("stopped at once; what was saved before is kept")
            leave_now(INTERRUPTED)

    def handle(number: int, frame: object) -> None:
        if _watching:
            return  # the thread has answered
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        answer(number)

    before, answered = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}, _answer
    _answer = answer
    try:
        yield stop
    finally:
        _answer = answered
        for number, handler in before.items():
            signal.signal(number, handler)
