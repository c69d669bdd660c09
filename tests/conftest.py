"""Every test sees eight CPU devices, a persistent compile cache, and no accelerator.

These settings must precede the first import of jax, and subprocesses inherit them.
"""

from __future__ import annotations

import os
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import hypothesis  # noqa: E402
from absl import flags  # noqa: E402

# Compiling makes the first example slow; CI draws the same examples on every run.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=25, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tests")

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # worker processes of input pipelines read absl's flags
