"""The program: its manual, its dry run, its one-line errors."""

from __future__ import annotations

import pytest

from tests.training import tiny


def test_the_manual():
    result = tiny.run("train", "--help")
    for word in ("--config=configs/mnist.py:base", "--workdir", "--dry_run", "Exit status", "resume", "--coordinator"):
        assert word in result.stdout, word


def test_a_dry_run(tmp_path):
    recipe = tiny.recipe(tmp_path, system={"name": "toy", "width": 64})
    result = tiny.run("train", f"--config={recipe}", "--dry_run", "--config.mesh.fsdp=4", devices=8)
    assert result.returncode == 0, result.stderr
    lines = ("parameters            40,193", "data 2, fsdp 4, tensor 1", "MiB", "FLOPs per step", "examples              60")
    for line in lines:
        assert line in result.stdout, (line, result.stdout)
    assert "[None, None, 'fsdp']" in result.stdout and "whole on every device" in result.stdout
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.training.stpes=3", "did you mean 'steps'"),
        ("--config.system.name=tyo", "unknown system 'tyo'; did you mean 'toy'"),
        ("--workdir=/proc/run", "cannot write to /proc/run"),
        ("--workdir=", "--workdir=DIR is needed"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flag, message):
    result = tiny.run("train", f"--config={tiny.recipe(tmp_path)}", f"--workdir={tmp_path / 'run'}", flag)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "run").exists()
