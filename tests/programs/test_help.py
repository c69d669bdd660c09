"""--help as the manual: each program's own flags, all of them, in groups, no others; at once, and without heavy libraries."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from diffusion_jax.registry import known, lookup
from tests import processes
from tests.programs.test_extending import ROOT

PROGRAMS = ("train", "sample", "edit", "evaluate", "convert", "reference_stats", "post_hoc_ema")
SHARED = {
    "define_process_flags": "programs.py",
    "define_run_flags": "inference/command_line.py",
    "define_feature_flags": "inference/command_line.py",
}


def _defined(text: str) -> set[str]:
    return set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))


def _own(program: str) -> set[str]:
    """The flags that a program's source defines, and those of the shared functions that it calls."""
    from diffusion_jax.inference.command_line import _SAMPLING

    source = (ROOT / "diffusion_jax" / f"{program}.py").read_text()
    calls = set(re.findall(r"\.(define_\w+)\(", source))
    own = _defined(source) | {"import"}
    shared = {name: (ROOT / "diffusion_jax" / file).read_text() for name, file in SHARED.items()}
    if "define_run_flags" in calls:
        own |= {*_SAMPLING, "workdir", "classifier", "mesh"}
        calls.add("define_process_flags")
    if "define_process_flags" in calls:
        own |= _defined(shared["define_process_flags"])
    if "define_feature_flags" in calls:
        own |= _defined(shared["define_feature_flags"]) - {"workdir", "classifier", "mesh", "import"}
    if "define_conditioning_flags" in calls:
        own |= {flag.name for kind in known("conditioner") for flag in lookup("conditioner", kind).flags}
    return own


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_the_manual(program, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", f"diffusion_jax.{program}", "--help"]
    environment = processes.environment(1, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = set(re.findall(r"\|\s+(\w+)(?:\.\S+)?$", done.stderr, flags=re.M))
    assert not imported & {"torch", "tensorflow", "transformers", "diffusers", "matplotlib", "sklearn", "pandas"}
    listed = re.findall(r"^  --(?:\[no\])?(\w+)(?:=|\s|$)", done.stdout, flags=re.M)
    assert len(listed) == len(set(listed))
    assert set(listed) - {"config"} == _own(program) - {"config"}
    assert done.stdout.splitlines()[0].endswith(".") and "python -m diffusion_jax." in done.stdout  # the docstring
    assert max(map(len, done.stdout.splitlines())) <= 150
