"""Checksums of checkpoints: every flipped bit is noticed, wherever the weights are read."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.errors import CheckpointError
from diffusion_jax.inference import Run
from diffusion_jax.training import frozen, integrity, post_hoc_ema
from diffusion_jax.training.checkpoints import Checkpointer, restore_part, restore_weights
from tests.training import tiny

POWERS = [{"name": "power", "sigma_rel": 0.05}, {"name": "power", "sigma_rel": 0.1}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints of steps 3 and 6."""
    workdir = tmp_path_factory.mktemp("run")
    tiny.train(workdir, training__steps=6, training__ema=POWERS)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it, to break."""
    return shutil.copytree(finished, tmp_path / "run")


def step_folder(workdir, step=6):
    return workdir / "checkpoints" / str(step)


def flip(folder, rng):
    """Flip one bit of a checkpoint's arrays, each bit as likely as any other; returns the file."""
    files = sorted(path for path in (folder / "state").rglob("d/*") if path.is_file())
    at = rng.integers(8 * sum(path.stat().st_size for path in files))
    for path in files:
        if at < 8 * path.stat().st_size:
            data = bytearray(path.read_bytes())
            data[at // 8] ^= 1 << (at % 8)
            path.write_bytes(data)
            return path
        at -= 8 * path.stat().st_size
    raise AssertionError("no such bit")


def state(checkpointer):
    return checkpointer.restore_latest(tiny.prepare(training__ema=POWERS).target)


@pytest.mark.parametrize("flips", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_any_flipped_bit_is_noticed(finished, tmp_path, flips):
    target, rng = tiny.prepare().target.params, np.random.default_rng(0)
    for number in range(flips):
        workdir = shutil.copytree(finished, tmp_path / str(number))
        path = flip(step_folder(workdir), rng)
        with pytest.raises(CheckpointError, match=f"{path} is damaged: its checksum differs; .* name another --step"):
            restore_weights(workdir, target, "raw", 6)
        shutil.rmtree(workdir)


def power(workdir):
    return restore_weights(workdir, tiny.prepare().target.params, "power_0.05")[1]


def sampled(workdir):
    run = Run(workdir)
    return run.load(weights="raw")[1]


def frozen_run(workdir):
    section = {"teacher": str(workdir)}
    target = {"teacher": tiny.prepare().target.params}
    return int(frozen.load(section, target) and frozen.sources(section)["teacher"].load(target["teacher"], None)[1]["step"])


READERS = {
    "training": lambda workdir: int(state(Checkpointer(workdir)).step),
    "an average": power,
    "sampling and evaluation": sampled,
    "a frozen run": frozen_run,
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_takes_the_last_good_one_and_says_so(workdir, caplog, reader):
    assert READERS[reader](workdir) == 6
    path = flip(step_folder(workdir), np.random.default_rng(1))
    with caplog.at_level("WARNING", logger="diffusion_jax"):
        assert READERS[reader](workdir) == 3
    (message,) = {record.getMessage() for record in caplog.records}
    assert message.startswith(f"{path} is damaged: its checksum differs; ") and "checkpoint 3" in message


def test_an_average_is_not_made_of_damaged_ones(workdir, tmp_path):
    path = flip(step_folder(workdir, 3), np.random.default_rng(1))
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        post_hoc_ema.write_run(workdir, tmp_path / "out", 0.08)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["state/_METADATA", "state/manifest.ocdbt", "meta/metadata", "sums.json"])
@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_every_file_is_held_to_its_checksum(workdir, name, how):
    path = step_folder(workdir) / name
    if how == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        integrity.verify(step_folder(workdir))
    assert str(path.parent) in str(caught.value) and "damaged" in str(caught.value)
    assert int(state(Checkpointer(workdir)).step) == 3


def test_checkpoints_from_before_there_were_checksums_are_read_with_a_line(workdir, caplog):
    folder = step_folder(workdir)
    (folder / "sums.json").unlink()
    meta = json.loads((folder / "meta" / "metadata").read_text())
    del meta["checksums"]
    (folder / "meta" / "metadata").write_text(json.dumps(meta))
    with caplog.at_level("WARNING", logger="diffusion_jax"):
        assert power(workdir) == 6 and power(workdir) == 6
    (record,) = caplog.records
    assert "saved without checksums, by an earlier version" in record.getMessage()


def test_a_checkpoint_is_finished_with_its_checksums_or_not_at_all(finished, tmp_path, monkeypatch):
    for step in training.finished_steps(finished):
        folder = step_folder(finished, step)
        files = {path.relative_to(folder).as_posix() for path in folder.glob("*/**/*") if path.is_file()}
        assert json.loads((folder / "sums.json").read_text()).keys() == files and "meta/metadata" in files

    def fails(folder):
        raise OSError("[Errno 28] No space left on device")

    monkeypatch.setattr(integrity, "write_sums", fails)
    checkpointer, program = Checkpointer(tmp_path), tiny.prepare()
    checkpointer.save(program.init(), 1, program.config)
    with pytest.raises(CheckpointError, match="cannot save a checkpoint .* the disk is full"):
        checkpointer.wait()
    assert training.finished_steps(tmp_path) == [] and not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_what_was_verified_is_read_once(workdir, monkeypatch):
    read = []
    one = integrity._sum
    monkeypatch.setattr(integrity, "_sum", lambda path: read.append(path) or one(path))
    count = jax.ShapeDtypeStruct((), np.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    for _ in range(3):
        assert restore_part(workdir, {"step": count}, 6)["step"] == 6
    assert len(read) == len(set(read)) > 0
    flip(step_folder(workdir), np.random.default_rng(0))
    with pytest.raises(CheckpointError, match="damaged"):
        restore_part(workdir, {"step": count}, 6)
