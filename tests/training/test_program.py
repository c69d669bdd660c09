"""The program: its manual, its dry run, its one-line errors, what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffusion_jax import train
from diffusion_jax.errors import DiffusionError
from tests.training import tiny


def test_the_manual():
    for word in ("--config=configs/mnist.py:base", "--workdir", "--dry_run", "Exit status", "resume", "--coordinator"):
        assert word in train.__doc__, word


def test_a_dry_run(tmp_path):
    found = tiny.work(tiny.recipe(tmp_path), "", "--config.mesh.fsdp=4", "--config.system.width=64", dry_run=True)
    lines = ("parameters            40,193", "data 2, fsdp 4, tensor 1", "MiB", "FLOPs per step", "examples              60")
    for line in (*lines, "[None, None, 'fsdp']", "whole on every device"):
        assert line in found, (line, found)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "workdir", "message"),
    [
        ("--config.training.stpes=3", "{}", "did you mean 'steps'"),
        ("--config.system.name=tyo", "{}", "unknown system 'tyo'; did you mean 'toy'"),
        ("--config.training.grid_every=5", "/proc/run", "cannot write to /proc/run"),
        ("--config.seed=1", "", "--workdir=DIR is needed"),
        ("--config.frozen.teacher=nowhere", "{}", "nowhere holds no run"),
    ],
)
def test_mistakes_are_one_line(tmp_path, argument, workdir, message):
    with pytest.raises(DiffusionError, match=message) as raised:
        tiny.work(tiny.recipe(tmp_path), workdir.format(tmp_path / "run"), argument)
    assert len(str(raised.value).splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_launch(tmp_path):
    """A mistake ends a real process with one line and status 2; large libraries that may be installed are not imported."""
    script = (
        "import sys; from diffusion_jax import train; from diffusion_jax.inference import command_line; "
        "heavy = {'torch', 'tensorflow', 'transformers', 'tensorboardX'} & set(sys.modules); "
        "assert not heavy, heavy; command_line.run_program('train', train.define_flags, train._work)"
    )
    arguments = [f"--config={tiny.recipe(tmp_path)}", f"--workdir={tmp_path / 'run'}", "--config.training.stpes=3"]
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=tiny.environment(), cwd=tiny.ROOT, text=True, capture_output=True
    )
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("train: error: ") and "did you mean 'steps'" in result.stderr
    assert not (tmp_path / "run").exists()
