"""Checkpoints: any mesh, only good ones, clear errors."""

from __future__ import annotations

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.errors import CheckpointError
from diffusion_jax.training.checkpoints import Checkpointer, restore_weights
from diffusion_jax.training.step import zero_metrics
from diffusion_jax.training.workdir import read_meta
from tests.training import tiny

SHARDED = {"mesh__data": 1, "mesh__fsdp": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 10 steps on eight devices with checkpoints 6, 9 and 10."""
    workdir = tmp_path_factory.mktemp("run")
    tiny.train(workdir, **SHARDED)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it, to break."""
    return shutil.copytree(finished, tmp_path / "run")


def data_files(workdir, step):
    """The files of a checkpoint that hold its arrays; how Orbax shares them out varies from one save to the next."""
    return list((workdir / "checkpoints" / str(step) / "state").rglob("d/*"))


def damage(workdir, step):
    """Cut the arrays of a checkpoint short."""
    for path in data_files(workdir, step):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def restore(workdir, devices=8, **overrides):
    """(checkpointer, restored state)."""
    checkpointer = Checkpointer(workdir)
    return checkpointer, checkpointer.restore_latest(tiny.prepare(devices, **overrides).target)


def test_restored_onto_another_mesh_bit_by_bit(finished):
    states = []
    for devices, mesh in ((8, SHARDED), (1, {}), (4, {}), (4, {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2})):
        _, state = restore(finished, devices, **mesh)
        assert len(state.params["middle"]["kernel"].addressable_shards) == devices
        states.append(jax.device_get(state.as_dict()))
    assert states[0]["step"] == 10 and states[0]["system_state"]["seen"] == 160
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


def test_what_is_kept(finished, tmp_path):
    assert training.finished_steps(finished) == [6, 9, 10]
    tiny.train(tmp_path, training__checkpoint_every=1, training__keep_last=2, training__keep_every=4, **SHARDED)
    assert training.finished_steps(tmp_path) == [4, 8, 9, 10]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "4", "8", "9"]  # no trash
    meta = read_meta(tmp_path, 10)
    assert meta["step"] == 10 and meta["config"]["seed"] == 1 and "jax" in meta["versions"]


def test_sums_since_the_last_row_come_along(tmp_path):
    program = tiny.prepare()
    state, sums = program.init(), program.zero_metrics()
    for step in range(2):
        state, sums = program.step(state, sums, program.put(program.pipeline.batch(step)))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state, 2, program.config, sums)
    checkpointer.wait()
    found = checkpointer.restore_sums(2, zero_metrics())
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(sums))
    assert found["steps"].dtype == np.int32 and found["steps"] == 2
    checkpointer.close()


def test_a_step_is_saved_or_refused(tmp_path):
    program = tiny.prepare()
    state = program.init()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state, 2, program.config)
    checkpointer.save(state, 2, program.config)  # by the same run: it is there
    with pytest.raises(CheckpointError, match="up to step 2, so step 1 cannot be added"):
        checkpointer.save(state, 1, program.config)
    checkpointer.close()
    other = Checkpointer(tmp_path)
    with pytest.raises(CheckpointError, match="step 2 cannot be added"):
        other.save(state, 2, program.config)
    other.close()
    assert training.finished_steps(tmp_path) == [2]


def test_a_broken_checkpoint_is_set_aside(workdir, caplog):
    """The state comes from the last good one, the log says so, and the step can be saved again."""
    damage(workdir, 10)
    shutil.rmtree(workdir / "checkpoints" / "9" / "state")  # half deleted
    with caplog.at_level("WARNING", logger="diffusion_jax"):
        checkpointer, state = restore(workdir)
    assert "Checkpoint 10" in caplog.text and "Falling back to checkpoint 6" in caplog.text
    assert int(state.step) == 6 and checkpointer.steps() == [6]
    assert sorted(path.name for path in (workdir / "broken").iterdir()) == ["10", "9"]
    checkpointer.save(state, 10, tiny.config())
    checkpointer.close()
    assert training.finished_steps(workdir) == [6, 10]


@pytest.mark.parametrize("name", ["arrays", "state/_METADATA", "state/manifest.ocdbt", "meta/metadata"])
@pytest.mark.parametrize("how", ["empty", "missing"])
def test_whatever_file_is_damaged(workdir, name, how):
    for path in data_files(workdir, 10) if name == "arrays" else [workdir / "checkpoints" / "10" / name]:
        if how == "empty":
            path.write_bytes(b"")
        else:
            path.unlink()
    assert int(restore(workdir)[1].step) == 9


def test_no_readable_checkpoint(workdir, caplog):
    """Nothing is moved then: the reason may not lie in the files."""
    for step in (6, 9, 10):
        damage(workdir, step)
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[6, 9, 10\] in .* can be read \(10: "):
        restore(workdir)
    with pytest.raises(CheckpointError, match="no checkpoint.*can be read"):
        restore_weights(workdir, jax.eval_shape(tiny.Toy(8).init, jax.random.key(0)), "raw")
    assert training.finished_steps(workdir) == [6, 9, 10] and not (workdir / "broken").exists()


def test_weights_of_other_shapes_or_types_are_not_taken(finished):
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        restore(finished, system={"name": "toy", "width": 24})
    checkpointer, target = Checkpointer(finished), tiny.prepare(1).target
    target.params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.bfloat16, sharding=leaf.sharding), target.params
    )
    with pytest.raises(CheckpointError, match="none of the checkpoints.*bfloat16"):
        checkpointer.restore_latest(target)


def test_weights_to_sample_from(finished):
    raw, ema, named = (inference.load_run(finished, weights=weights) for weights in ("raw", "ema", "constant_0.99"))
    leaf = lambda run: np.asarray(run.params["stem"]["kernel"])  # noqa: E731
    assert ema.step == 10 and np.abs(leaf(raw) - leaf(ema)).max() > 0
    np.testing.assert_array_equal(leaf(ema), leaf(named))
    _, state = restore(finished)
    np.testing.assert_array_equal(leaf(raw), state.params["stem"]["kernel"])
    np.testing.assert_array_equal(leaf(ema), state.ema["constant_0.99"]["stem"]["kernel"])
    assert inference.load_run(finished, step=6).step == 6
    assert inference.load_run(finished, overrides={"sampling.steps": 7}).config["sampling"]["steps"] == 7


def test_sampling_falls_back_too(workdir, caplog):
    damage(workdir, 10)
    with caplog.at_level("ERROR", logger="diffusion_jax"):
        assert inference.load_run(workdir).step == 9
    assert "Checkpoint 10" in caplog.text
    with pytest.raises(CheckpointError, match="no checkpoint.*can be read"):
        inference.load_run(workdir, step=10)


def test_what_is_not_there(finished, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 \(it has: 6, 9, 10\)"):
        inference.load_run(finished, step=7)
    with pytest.raises(CheckpointError, match="no weights 'emma'.*constant_0.99"):
        inference.load_run(finished, weights="emma")
    with pytest.raises(CheckpointError, match="holds no run"):
        inference.load_run(tmp_path)
    training.config.claim(tmp_path, tiny.config())
    with pytest.raises(CheckpointError, match="no finished checkpoint yet"):
        inference.load_run(tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(CheckpointError, match="cannot write to.*choose a writable --workdir"):
        tiny.train(blocked / "run")
    with pytest.raises(CheckpointError, match="cannot write to.*choose a writable --workdir"):
        Checkpointer("/proc/run")


def test_a_full_disk_keeps_what_was_saved(tmp_path):
    """Files may not grow past a limit: the save fails as on a full disk, older checkpoints stay."""
    recipe = tiny.recipe(tmp_path, training__steps=20)
    arguments = [f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    first = tiny.run("train", *arguments, "--config.training.steps=3")
    assert first.returncode == 0, first.stderr
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000)); "
        "sys.argv = sys.argv[1:]; runpy.run_module('diffusion_jax.train', run_name='__main__')"
    )
    env = {key: value for key, value in tiny.environment().items() if key != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", limited, "train", *arguments],
        env=env, cwd=tiny.ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr[-2000:]
    told = [line for line in result.stderr.splitlines() if line.startswith("error: ")]  # threads may still grumble after it
    assert len(told) == 1 and told[0].startswith("error: cannot save a checkpoint"), result.stderr[-2000:]
    assert "the disk is full" in told[0] and "from step 3" in told[0]
    assert training.finished_steps(tmp_path / "run") == [3]
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))
    again = tiny.run("train", *arguments)
    assert again.returncode == 0 and "Resuming at step 3" in again.stderr
