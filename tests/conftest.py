"""Every test sees eight CPU devices, a persistent compile cache, a compiler in a hurry, and no accelerator.

These settings must precede the first import of jax, and subprocesses inherit them.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import pathlib
import sys
import zlib

_ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _known_to_xla(flag: str) -> bool:
    """Whether this jaxlib has the flag: XLA aborts on one that it does not know."""
    folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
    for library in sorted(folder.glob("libjax_common*")):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return text.find(flag.encode()) >= 0
    return False


def _add_flag(flag: str, value: int | str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{flag}={value}".strip()


_add_flag("xla_force_host_platform_device_count", 8)
# Small programs, run a few times: to compile them is most of the work. Slow tests train for minutes: there it is not.
# The workers of xdist do not see the command line, so the choice is handed on.
_asked = any("slow" in argument and "not slow" not in argument for argument in sys.argv[1:])
if os.environ.setdefault("DIFFUSION_JAX_TESTS_COMPILE", "fully" if _asked else "in a hurry") == "in a hurry":
    _add_flag("xla_backend_optimization_level", 0)
    if _known_to_xla("xla_cpu_use_fusion_emitters"):
        _add_flag("xla_cpu_use_fusion_emitters", "false")

import hypothesis  # noqa: E402
from absl import flags  # noqa: E402

# Compiling makes the first example slow; CI draws the same examples on every run.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=25, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tests")

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # worker processes of input pipelines read absl's flags


def pytest_addoption(parser) -> None:
    """--shard=K/N runs one of N parts of what is selected, K from 0; which one a test is in depends on its name alone."""
    parser.addoption("--shard", default="0/1", help="Run part K of N, as K/N with K from 0.")


def pytest_collection_modifyitems(config, items) -> None:
    place, count = map(int, config.getoption("--shard").split("/"))
    others = [item for item in items if zlib.crc32(item.nodeid.encode()) % count != place]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]
