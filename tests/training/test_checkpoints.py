"""Checkpoints: any mesh, only good ones, clear errors."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.errors import CheckpointError
from diffusion_jax.training.checkpoints import Checkpointer, read_meta, restore_weights
from tests.training import tiny


def finished(workdir, **overrides):
    training.train(tiny.config(mesh__data=1, mesh__fsdp=8, **overrides), workdir)
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of 10 steps on eight devices with checkpoints 6, 9 and 10."""
    return finished(tmp_path_factory.mktemp("run"))


def test_restored_onto_another_mesh_bit_by_bit(workdir):
    states = []
    for devices in (8, 1, 4):
        program = training.prepare(tiny.config(mesh__fsdp=1, mesh__data=-1), jax.devices()[:devices])
        states.append(jax.device_get(Checkpointer(workdir).restore_latest(program.target).as_dict()))
    assert states[0]["step"] == 10
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


def test_what_is_kept(workdir, tmp_path):
    assert training.finished_steps(workdir) == [6, 9, 10]
    finished(tmp_path, training__checkpoint_every=1, training__keep_last=2, training__keep_every=4)
    assert training.finished_steps(tmp_path) == [4, 8, 9, 10]
    meta = read_meta(tmp_path, 10)
    assert meta["step"] == 10 and meta["config"]["seed"] == 1 and "jax" in meta["versions"]


def damage(workdir, step):
    """Cut every array file of a checkpoint in half."""
    for path in (workdir / "checkpoints" / str(step) / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_broken_checkpoint_is_set_aside(tmp_path, caplog):
    """The run goes on from the last good one, says so, and ends where it would have ended."""
    whole = training.train(tiny.config(), tmp_path / "whole")
    training.train(tiny.config(training__steps=9), tmp_path / "run")
    damage(tmp_path / "run", 9)
    with caplog.at_level("WARNING", logger="diffusion_jax"):
        result = training.train(tiny.config(), tmp_path / "run")
    assert "Checkpoint 9" in caplog.text and "Falling back to checkpoint 6" in caplog.text
    assert result["loss"] == whole["loss"] and result["step"] == 10
    assert (tmp_path / "run" / "broken" / "9").is_dir() and training.finished_steps(tmp_path / "run") == [6, 9, 10]


def test_no_readable_checkpoint(tmp_path):
    training.train(tiny.config(training__steps=2), tmp_path)
    damage(tmp_path, 2)
    with pytest.raises(CheckpointError, match="no checkpoint.*can be read"):
        training.load_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[2\]"):
        training.train(tiny.config(training__steps=4), tmp_path)


def test_weights_to_sample_from(workdir):
    raw, ema, named = (training.load_run(workdir, weights=w) for w in ("raw", "ema", "constant_0.99"))
    leaf = lambda run: np.asarray(run.params["stem"]["kernel"])  # noqa: E731
    assert ema.step == 10 and np.abs(leaf(raw) - leaf(ema)).max() > 0
    np.testing.assert_array_equal(leaf(ema), leaf(named))
    assert training.load_run(workdir, step=6).step == 6
    assert training.load_run(workdir, overrides={"sampling.steps": 7}).config["sampling"]["steps"] == 7


def test_what_is_not_there(workdir, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 \(it has: 6, 9, 10\)"):
        training.load_run(workdir, step=7)
    with pytest.raises(CheckpointError, match="no weights 'emma'.*constant_0.99"):
        training.load_run(workdir, weights="emma")
    with pytest.raises(CheckpointError, match="holds no run"):
        training.load_run(tmp_path)
    training.config.claim(tmp_path, training.complete(tiny.config()))
    with pytest.raises(CheckpointError, match="no finished checkpoint yet"):
        restore_weights(tmp_path, {}, "raw")


def test_a_directory_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(CheckpointError, match="cannot write to.*choose a writable --workdir"):
        training.train(tiny.config(), blocked / "run")


def test_a_full_disk_keeps_what_was_saved(tmp_path):
    """Files may not grow past a limit: the save fails like on a full disk, older checkpoints stay."""
    recipe = tiny.recipe(tmp_path)
    arguments = [f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    assert tiny.run("train", *arguments, "--config.training.steps=3").returncode == 0
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); "
        "sys.argv = sys.argv[1:]; runpy.run_module('diffusion_jax.train', run_name='__main__')"
    )
    env = {key: value for key, value in tiny.environment().items() if key != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", limited, "train", *arguments],
        env=env, cwd=tiny.ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr[-2000:]
    assert "cannot save a checkpoint" in result.stderr and "it resumes from step 3" in result.stderr
    assert training.finished_steps(tmp_path / "run") == [3]
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))
    result = tiny.run("train", *arguments)
    assert result.returncode == 0 and "Resuming at step 3" in result.stderr
