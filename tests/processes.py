"""The environment of programs that tests start."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
"""No file may grow, as on a disk that is all but full."""
CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"
"""Ctrl-C reaches the program, also where pytest runs in the background."""


def after(statement: str, command: Sequence[str]) -> list[str]:
    """The command line of a Python program whose process executes a statement first: forking here, among threads, may hang."""
    return [sys.executable, "-c", f"{statement}\nimport os, sys; os.execv(sys.argv[1], sys.argv[1:])", *command]


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """This process's own, compiler flags and all, but with so many CPU devices."""
    count = "--xla_force_host_platform_device_count="
    flags = re.sub(rf"{count}\d+", "", os.environ.get("XLA_FLAGS", ""))
    return {**os.environ, "XLA_FLAGS": f"{flags} {count}{devices}".strip(), **more}
