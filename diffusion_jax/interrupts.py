"""Ctrl-C and SIGTERM, answered at once: also inside a compiler, where Python's own handlers wait for it to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

_GRACE = 5.0  # seconds, for a program to end by itself
_lock = threading.Lock()
_watching = False
_said: set[str] = set()
_answer: Callable[[int], None] = signal.Signals  # until a program is watched, no more than the signal's name


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


def interrupted(name: str, error: BaseException) -> bool:
    """Return whether an error is what Ctrl-C has become on its way through other libraries."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None or name in _said


def was_said() -> bool:
    """Return whether a program said that it was interrupted: nothing is to be said after that."""
    return bool(_said)


def swallowed() -> None:
    """End the program, whose `KeyboardInterrupt` foreign code has taken for an error of its own, and reported."""
    for _ in range(20):  # the thread that answers may be behind
        if _said:
            leave_now(INTERRUPTED)
        time.sleep(0.05)


def leave_now(status: int) -> NoReturn:
    """Exit without waiting for threads or peers, which can take minutes and hold the devices; worker processes end too."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if "multiprocessing" in sys.modules:
        for worker in sys.modules["multiprocessing"].active_children():
            worker.terminate()
    os._exit(status)


def watch_start(command: Sequence[str]) -> None:
    """Make Ctrl-C one line and exit status 130 while a program, `python -m diffusion_jax.NAME`, is still being imported.

    There is nothing to clean up yet, and a `KeyboardInterrupt` among imports would be a page of lines, or be lost.

    Args:
      command: the interpreter's, `sys.orig_argv`.
    """
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    if module.startswith("diffusion_jax.") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _pass)
        _listen_with(lambda number: say_interrupted(module.rpartition(".")[2]) and leave_now(INTERRUPTED))


def _pass(number: int, frame: object) -> None:
    """The handler of a signal that the listening thread answers."""


def watch(name: str) -> None:
    """Make Ctrl-C one line on stderr and exit status 130, within seconds, whatever the program is doing.

    The main thread gets its `KeyboardInterrupt` and may clean up; where it does not come out of foreign code in time, the
    process ends all the same. To be called by a program, in the main thread.

    Args:
      name: the program's, which begins the line.
    """

    def answer(number: int) -> None:
        if number == signal.SIGINT:
            if not say_interrupted(name):
                leave_now(INTERRUPTED)  # the second time
            timer = threading.Timer(_GRACE, leave_now, (INTERRUPTED,))
            timer.daemon = True
            timer.start()

    _listen_with(answer)
    if signal.getsignal(signal.SIGINT) is _pass:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _listen_with(answer: Callable[[int], None]) -> None:
    global _watching, _answer
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
def stop_requests(message: str, hand_on: int | None = None) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or Ctrl-C sets, which is said at once; a second Ctrl-C interrupts.

    In a program that is watched, the second Ctrl-C ends the process, with status 130. Signals reach a program's main thread
    alone: in others the event is never set.

    Args:
      message: the line that says what is going to happen.
      hand_on: the signal that Ctrl-C becomes, for a handler that is there already and is left alone.
    """
    global _answer
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def answer(number: int) -> None:
        if number != signal.SIGINT and (number != signal.SIGTERM or hand_on):
            return
        if not stop.is_set():
            stop.set()
            say(message)
            if hand_on:
                os.kill(os.getpid(), hand_on)
        elif number == signal.SIGINT:
            say("stopped at once; what was saved before is kept")
            leave_now(INTERRUPTED)

    def handle(number: int, frame: object) -> None:
        if _watching:
            return  # the thread has answered
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        answer(number)

    numbers = (signal.SIGINT,) if hand_on else (signal.SIGTERM, signal.SIGINT)
    before, answered = {number: signal.signal(number, handle) for number in numbers}, _answer
    _answer = answer
    try:
        yield stop
    finally:
        _answer = answered
        for number, handler in before.items():
            signal.signal(number, handler)
