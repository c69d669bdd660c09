"""Checkpoints: any mesh, only good ones, clear errors."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import signal

import jax
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.errors import CheckpointError, DataError
from diffusion_jax.training.checkpoints import Checkpointer, read_meta, restore_weights
from tests.training import tiny

SHARDED = {"mesh__data": 1, "mesh__fsdp": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 10 steps on eight devices with checkpoints 6, 9 and 10."""
    workdir = tmp_path_factory.mktemp("run")
    tiny.train(workdir, 8, **SHARDED)
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
        assert len(state.params["network"]["middle"]["kernel"].addressable_shards) == devices
        states.append(jax.device_get(state.as_dict()))
    assert states[0]["step"] == 10 and states[0]["system_state"]["seen"] == 160
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


def test_what_is_kept(finished, tmp_path):
    assert training.finished_steps(finished) == [6, 9, 10]
    tiny.train(tmp_path, training__checkpoint_every=1, training__keep_last=2, training__keep_every=4)
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
    found = checkpointer.restore_sums(2, program.zero_metrics())
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(sums))
    assert found["steps"].dtype == np.int32 and found["steps"] == 2
    more = {**program.zero_metrics(), "new": np.ones(3)}
    assert checkpointer.restore_sums(2, more)["new"].tolist() == [1, 1, 1]  # what earlier releases did not sum
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
    assert "is damaged: its checksum differs; " in caplog.text and "going on from checkpoint 6" in caplog.text
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
    with pytest.raises(
        CheckpointError, match=r"none of the checkpoints \[6, 9, 10\] in .* can be read \(.*10/state.* is damaged"
    ):
        restore(workdir)
    with pytest.raises(CheckpointError, match="no checkpoint.*can be read"):
        restore_weights(workdir, tiny.prepare(8, **SHARDED).target.params, "raw")
    assert training.finished_steps(workdir) == [6, 9, 10] and not (workdir / "broken").exists()


def test_weights_of_other_shapes_or_types_are_not_taken(finished):
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        restore(finished, system={"name": "toy", "width": 24})
    target = tiny.prepare(1).target
    half = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.bfloat16, sharding=leaf.sharding)  # noqa: E731
    with pytest.raises(CheckpointError, match="none of the checkpoints.*bfloat16"):
        Checkpointer(finished).restore_latest(dataclasses.replace(target, params=jax.tree.map(half, target.params)))


@pytest.mark.parametrize("mesh", [SHARDED, {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}])
def test_weights_alone_straight_onto_a_mesh(finished, mesh):
    """Each device reads its own part: the parameters are never whole on one of them."""
    target = tiny.prepare(8, **mesh).target.params
    found, step = restore_weights(finished, target, "raw")
    kernel = found["network"]["middle"]["kernel"]
    assert step == 10 and kernel.sharding == target["network"]["middle"]["kernel"].sharding
    assert max(shard.data.size for shard in kernel.addressable_shards) <= kernel.size // 4
    state = restore(finished)[1]
    ema, _ = restore_weights(finished, target, "constant_0.99")
    jax.tree.map(np.testing.assert_array_equal, found, state.params)
    jax.tree.map(np.testing.assert_array_equal, ema, state.ema["constant_0.99"])
    assert np.abs(kernel - ema["network"]["middle"]["kernel"]).max() > 0


def test_weights_of_an_earlier_step(workdir, caplog):
    target = tiny.prepare().target.params
    assert restore_weights(workdir, target, "raw", 6)[1] == 6
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 \(it has: 6, 9, 10\)"):
        restore_weights(workdir, target, "raw", 7)
    damage(workdir, 10)
    with caplog.at_level("WARNING", logger="diffusion_jax"):
        assert restore_weights(workdir, target, "raw")[1] == 9
    assert "is damaged: its checksum differs; checkpoint 9 is used instead" in caplog.text
    with pytest.raises(CheckpointError, match="no checkpoint.*can be read"):
        restore_weights(workdir, target, "raw", 10)


def test_what_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        training.config.read(tmp_path)
    with pytest.raises(CheckpointError, match="no finished checkpoint yet"):
        restore_weights(tmp_path, {}, "raw")


def test_a_directory_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(DataError, match="cannot write to.*choose a folder that can be written"):
        tiny.train(blocked / "run")
    with pytest.raises(CheckpointError, match="cannot write to.*choose a writable --workdir"):
        Checkpointer("/proc/run")


def test_a_full_disk_keeps_what_was_saved(tmp_path):
    """Files may not grow past a limit: the save fails as on a full disk, older checkpoints stay."""
    tiny.train(tmp_path, training__steps=3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot save a checkpoint.*the disk is full.*from step 3"):
            tiny.train(tmp_path, training__steps=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert training.finished_steps(tmp_path) == [3]
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    assert tiny.train(tmp_path, training__steps=20)["step"] == 20
    assert list(tiny.losses(tmp_path)) == list(range(1, 21))
