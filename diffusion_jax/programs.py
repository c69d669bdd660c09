"""What the programs share: how they log, and how several processes become one job."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
import jax
from absl import flags

from diffusion_jax import manual


def configure_logging() -> None:
    """Show this library's messages on stderr, one line each; of other libraries only warnings."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    logger = logging.getLogger("diffusion_jax")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.propagate = False


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


def join_processes(values: Mapping[str, Any]) -> None:
    """Join the other processes, if the flags' values name any; before anything else of JAX is used."""
    if not (values.get("distributed") or values.get("coordinator")):
        return
    named = {}
    if values["coordinator"]:
        named = {
            "coordinator_address": values["coordinator"],
            "num_processes": values["num_processes"],
            "process_id": values["process_id"],
        }
    jax.distributed.initialize(**named, heartbeat_timeout_seconds=values["heartbeat_seconds"])


def leave(status: int) -> NoReturn:
    """Exit. With peers, leaving through the interpreter's exit would wait for their heartbeat."""
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)


def leave_peers() -> None:
    """Where there are peers, log the error that is being handled and exit with status 17; they end within their heartbeat."""
    if jax.distributed.is_initialized():
        logging.getLogger("diffusion_jax").exception("Process %d failed.", jax.process_index())
        leave(17)
