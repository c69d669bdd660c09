"""The environment of programs that tests start."""

from __future__ import annotations

import os
import re


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """This process's own, compiler flags and all, but with so many CPU devices."""
    count = "--xla_force_host_platform_device_count="
    flags = re.sub(rf"{count}\d+", "", os.environ.get("XLA_FLAGS", ""))
    return {**os.environ, "XLA_FLAGS": f"{flags} {count}{devices}".strip(), **more}
