"""The program: its manual, its dry run, its one-line errors."""

from __future__ import annotations

import pytest

from diffusion_jax import train as program
from tests.training import tiny


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Run the program's main in this process; returns (exit status, stdout, stderr)."""

    def call(*, overrides=(), **flags):
        for flag in ("config", "workdir", "dry_run"):
            value = flags.get(flag)
            monkeypatch.setattr(getattr(program, f"_{flag.upper()}"), "_flagvalues", {flag: type("F", (), {"value": value})()})
        status = 0
        try:
            program.main(["train"], dict(overrides))
        except SystemExit as left:
            status = left.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


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
