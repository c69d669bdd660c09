"""What programs share: one line for what goes wrong, whoever says it, and the exit status."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from types import SimpleNamespace

import absl.logging
import pytest

from diffusion_jax import interrupts, processes, programs
from diffusion_jax.errors import ConfigError, DataError


@pytest.fixture
def logged(monkeypatch, capsys):
    """Logging as programs have it, and as it was afterwards."""
    root, ours, level = logging.getLogger(), logging.getLogger("diffusion_jax"), absl.logging.get_verbosity()
    kept = root.handlers[:], ours.handlers[:], ours.level, ours.propagate
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, hook, getattr(sys, hook))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    ours.handlers[:] = []
    with warnings.catch_warnings():
        programs.configure_logging()
        yield
    root.handlers[:], ours.handlers[:], ours.level, ours.propagate = kept
    absl.logging.set_verbosity(level)


def test_other_libraries_do_not_bury_ours(logged, capsys):
    def broken():
        raise OSError("no room\nfor any of the many lines of this")

    for number in range(50):
        try:
            broken()
        except OSError:
            absl.logging.exception("[process=0] writing of %d failed\nwith a page of what was tried", number)
        logging.getLogger("another.library").warning("a warning of no use")
        warnings.warn("another one", stacklevel=1)
        thread = threading.Thread(target=broken)
        thread.start()
        thread.join()
    logging.getLogger("diffusion_jax.train").info("step 1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3, lines
    assert lines[:2] == ["(absl: [process=0] writing of 0 failed)", "(a thread: OSError: no room)"]
    assert lines[2].endswith(" I step 1")


def test_all_is_shown_where_it_is_asked_for(monkeypatch, request):
    monkeypatch.setenv("DIFFUSION_JAX_LOG", "all")
    before = logging.getLogger().handlers[:]
    request.getfixturevalue("logged")
    assert logging.getLogger().handlers == before


def become(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("a mistake"), 2, "train: error: a mistake\n"),
        (DataError("bad data"), 2, "train: error: bad data\n"),
        (KeyboardInterrupt(), 130, "train: interrupted\n"),
        (become(ImportError("half of it"), KeyboardInterrupt()), 130, "train: interrupted\n"),
        (processes.LostPeer("gone"), 17, "train: error: gone\n"),
    ],
)
def test_exit_statuses(monkeypatch, capsys, error, status, line):
    left = []
    monkeypatch.setattr(interrupts, "_said", set())

    def leave(status):
        left.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(interrupts, "leave_now", leave)
    with pytest.raises(SystemExit), programs.answering("train"):
        raise error
    assert left == [status] and capsys.readouterr().err == line


def test_bugs_keep_their_tracebacks():
    with pytest.raises(KeyError, match="a bug"), programs.answering("train"):
        raise KeyError("a bug")


@pytest.mark.parametrize(
    "flags",
    [{"coordinator": "host"}, {"num_processes": None}, {"process_id": None}, {"process_id": 2}, {"process_id": -1}],
)
def test_flags_of_processes_fit_together(flags):
    values = {"distributed": False, "coordinator": "host:1", "num_processes": 2, "process_id": 0, "join_seconds": 1}
    with pytest.raises(ConfigError, match="needs HOST:PORT, --num_processes=N and --process_id=I"):
        programs.join_processes({**values, **flags})


def test_an_interruption_that_foreign_code_swallows_ends_the_program(logged, monkeypatch, capsys):
    """A callback or a destructor may take Ctrl-C for an error of its own, and the program would go on talking."""

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(interrupts, "_said", {"train"})
    monkeypatch.setattr(interrupts, "leave_now", leave)
    with pytest.raises(SystemExit) as ended:
        sys.unraisablehook(SimpleNamespace(exc_type=KeyboardInterrupt, exc_value=KeyboardInterrupt()))
    logging.getLogger("diffusion_jax.train").info("compiling")
    assert ended.value.code == interrupts.INTERRUPTED and capsys.readouterr().err == ""
