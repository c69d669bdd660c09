"""What the programs share: how they log and end, and how several processes become one job."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import jax
from absl import flags
from jax._src import distributed

from diffusion_jax import identity, interrupts, manual, processes
from diffusion_jax.errors import ConfigError, DiffusionError

_LOG = logging.getLogger("diffusion_jax.programs")

MISTAKE, LOST_PEER = 2, 17
"""Exit statuses; after Ctrl-C it is `interrupts.INTERRUPTED`."""


class _Ours(logging.Handler):
    """This library's messages, on stderr as it is when they come."""

    def emit(self, record: logging.LogRecord) -> None:
        interrupts.say(self.format(record))


class _Others(logging.Handler):
    """Other libraries' errors: the first line of each, once; of the same failure they may tell thousands."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._shown: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = (record.getMessage().strip().splitlines() or [""])[0][:200]
        key = record.name, str(record.msg)[:30]
        if key not in self._shown:
            self._shown.add(key)
            interrupts.say(f"({record.name}: {line})")


def configure_logging() -> None:
    """Show this library's messages on stderr, one line each; of other libraries the first lines of errors, once each.

    DIFFUSION_JAX_LOG=all in the environment shows all that other libraries say, tracebacks and warnings too.
    """
    logger = logging.getLogger("diffusion_jax")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = _Ours()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
        handler.addFilter(lambda record: not interrupts.was_said())
        logger.addHandler(handler)
    logger.propagate = False
    if os.environ.get("DIFFUSION_JAX_LOG") == "all":
        return
    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.getLogger().handlers[:] = [_Others()]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    threading.excepthook = lambda thrown: _of_thread(thrown.exc_type, thrown.exc_value)
    sys.unraisablehook = lambda thrown: _of_thread(thrown.exc_type, thrown.exc_value)
    of_main = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """TensorStore reports here what goes wrong in its callbacks, from threads of its own."""
        if threading.current_thread() is threading.main_thread():
            of_main(kind, error, trace)
        else:
            _of_thread(kind, error)

    sys.excepthook = hook


def _of_thread(kind: type[BaseException], error: BaseException | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        interrupts.swallowed()
    elif str(error) != "Event loop is closed":  # what follows an error that was reported
        logging.getLogger("a thread").error(f"{kind.__name__}: {error}")


def keep_compiled() -> None:
    """Keep compiled programs on disk, so that a command given again, or another checkpoint, compiles nothing anew.

    They lie in ~/.cache/diffusion_jax/jax/HOST, or where JAX_COMPILATION_CACHE_DIR says; JAX_ENABLE_COMPILATION_CACHE=false
    keeps none.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "diffusion_jax" / "jax" / platform.node()))


def flags_parser(complain: Callable[[str], None]) -> Callable[[Sequence[str]], list[str]]:
    """Parses flags for `absl.app.run`; a flag that cannot be read is one line and exit status 2, as all else is.

    Args:
      complain: writes the line.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(list(argv))
        except flags.Error as error:
            complain(f"{' '.join(str(error).split())}; see --help")
            sys.exit(2)

    return parse


SEVERAL_HOSTS = "Several hosts and devices"
"""The title of the flags that say where a program runs."""


def define_process_flags() -> None:
    """Define the flags that say which processes are one job."""
    with manual.group(SEVERAL_HOSTS):
        _define_process_flags()


def _define_process_flags() -> None:
    flags.DEFINE_bool("distributed", False, "Join the processes that the cluster's environment names.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are, with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0, with --coordinator.")
    flags.DEFINE_integer("heartbeat_seconds", 60, "How long a silent peer is waited for.")
    flags.DEFINE_integer("join_seconds", 300, "How long the other processes are waited for at the start.")


def join_processes(values: Mapping[str, Any], name: str = "") -> None:
    """Join the other processes, if the flags' values name any; before anything else of JAX is used.

    From then on a mistake in one of them ends all with its line, and a lost one ends the others with status 17.

    Args:
      name: the program's, for what is said when a peer fails.

    Raises:
      ConfigError: flags that do not fit together.
      LostPeer: peers do not come within --join_seconds.
      DiffusionError: processes that were not started alike: other flags, code, or libraries.
    """
    if not (values.get("distributed") or values.get("coordinator")):
        return
    named = {}
    if values["coordinator"]:
        named = {
            "coordinator_address": values["coordinator"],
            "num_processes": values["num_processes"],
            "process_id": values["process_id"],
        }
        count, here = named["num_processes"], named["process_id"]
        if count is None or here is None or not 0 <= here < count or ":" not in values["coordinator"]:
            raise ConfigError(
                f"--coordinator={values['coordinator']} needs HOST:PORT, --num_processes=N and --process_id=I with I from 0 to "
                f"N - 1; got {count} and {here}"
            )
    where, limit = values["coordinator"] or "the cluster's coordinator", values["join_seconds"]
    _LOG.info("Joining the other processes at %s, for at most %d s (--join_seconds).", where, limit)
    _end_with_peers(name)
    try:
        jax.distributed.initialize(**named, initialization_timeout=limit, heartbeat_timeout_seconds=values["heartbeat_seconds"])
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0] if "bad_cast" not in str(error) else "no answer"
        raise processes.LostPeer(
            f"could not join the other processes at {where} within {limit} s ({why}): see that all are started, with the same "
            "--coordinator and --num_processes, or raise --join_seconds"
        ) from error
    threading.Thread(target=_end_when_told, args=(name,), name="failures of peers", daemon=True).start()
    shared = {key: value for key, value in values.items() if key != "process_id"}
    shared = {key: value if isinstance(value, str | int | float | bool | None) else str(value) for key, value in shared.items()}
    processes.check_alike("how they were started", {"flags": shared, "libraries": identity.versions(), "code": identity.code()})


def _end_with_peers(name: str) -> None:
    """Make the death of a peer one line and status 17.

    JAX's runtime then aborts this process, from a thread in C++: a handler of SIGABRT in C is all that runs. With a callback
    for missed heartbeats, which fails in 0.10 since Python cannot be given its argument, it prints 9 lines before that and not
    30, and an error when joining reaches Python.
    """
    make = distributed._jax.get_distributed_runtime_client
    if not isinstance(make, _Client):
        distributed._jax.get_distributed_runtime_client = _Client(make)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    global _on_abort  # must outlive this call

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def _on_abort(number: int) -> None:
        interrupts.say(f"{name}: error: {_LOST}")
        os._exit(LOST_PEER)

    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


_LOST = "another process of this job has gone; start all of them again, they go on from what was saved last"


class _Client:
    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return self._make(*arguments, **more, missed_heartbeat_callback=lambda status: None)


def _end_when_told(name: str) -> None:
    """End this process by the mistake of a peer, unless it ends by itself."""
    said = processes.wait_for_failure()
    if said.startswith(f"process {distributed.global_state.process_id}:"):
        return  # its own
    threading.Event().wait(0.5)
    interrupts.say(f"{name}: error: {said}")
    interrupts.leave_now(MISTAKE)


@contextlib.contextmanager
def answering(name: str) -> Iterator[None]:
    """Turn what a program raises into one line on stderr and an exit status, at once: no thread and no peer is waited for.

    2 is a mistake that a person can mend (`DiffusionError`), 17 a process of several that failed or lost a peer, 130 Ctrl-C.

    Args:
      name: the program's, which begins the line.
    """
    try:
        yield
    except DiffusionError as error:
        interrupts.say(f"{name}: error: {error}")
        processes.tell_failure(str(error))
        interrupts.leave_now(MISTAKE)
    except SystemExit as ended:
        if jax.distributed.is_initialized() and not ended.code:
            jax.distributed.shutdown()
            interrupts.leave_now(0)  # the thread that listens to peers must not outlive the interpreter
        raise
    except KeyboardInterrupt:
        interrupts.say_interrupted(name)
        interrupts.leave_now(interrupts.INTERRUPTED)
    except processes.LostPeer as error:
        interrupts.say(f"{name}: error: {error}")
        interrupts.leave_now(LOST_PEER)
    except Exception as error:
        if interrupts.interrupted(name, error):
            interrupts.say_interrupted(name)
            interrupts.leave_now(interrupts.INTERRUPTED)
        if not jax.distributed.is_initialized():
            raise
        told = processes.failure_told()
        if told or processes.is_lost_peer(error):
            interrupts.say(f"{name}: error: {told or _LOST}")
        else:
            _LOG.exception("Process %d failed.", jax.process_index())
        interrupts.leave_now(MISTAKE if told else LOST_PEER)
