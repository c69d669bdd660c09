"""Rows and event files, what is kept of them on resume, throughput, the watch on the loss by noise level."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.record_writer import masked_crc32c

from diffusion_jax.errors import CheckpointError
from diffusion_jax.training import metrics
from diffusion_jax.training.events import EventFile
from diffusion_jax.training.metrics import CollapseWatch, Progress, Writers
from tests.event_files import events
from tests.training import tiny


def test_rows_after_the_restored_step_go(tmp_path):
    writers = Writers(tmp_path, 0)
    for step in (10, 20, 30):
        writers.write(step, {"loss": step / 10, "odd": float("nan")})
    writers.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # cut short by a crash
    writers = Writers(tmp_path, 20)
    assert [row["step"] for row in writers.kept] == [10, 20]
    writers.write(30, {"loss": 5.0})
    assert tiny.losses(tmp_path) == {10: 1.0, 20: 2.0, 30: 5.0}  # before it is closed
    writers.close()
    assert tiny.rows(tmp_path)[0]["odd"] is None
    assert not Writers(tmp_path, 0, tensorboard=False).kept


def test_event_files(tmp_path):
    writers = Writers(tmp_path, 0)
    writers.write(10, {"loss": 1.5, "loss_by_log_snr/-5_to_0": 2.5})
    picture = np.zeros((4, 6, 3), np.uint8)
    writers.image(10, "samples", picture)
    found = {(event.step, value.tag): value for event in events(tmp_path / "tensorboard") for value in event.summary.value}
    assert found[10, "loss"].simple_value == 1.5 and found[10, "loss_by_log_snr/-5_to_0"].simple_value == 2.5
    assert (found[10, "samples"].image.height, found[10, "samples"].image.width) == (4, 6)
    writers.close()
    Writers(tmp_path, 10).close()
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert starts == [1, 11]  # TensorBoard hides what earlier files say of these steps and later ones


def test_numbers_of_every_kind_in_event_files(tmp_path):
    """Negative steps, numbers beyond float32, names that are not ASCII, grey pictures: read by another library's messages."""
    file = EventFile(tmp_path / "deep" / "folder", ".suffix")
    values = {"loß": -1.5, "huge": 1e39, "nothing": float("nan"), "int": 3}
    file.scalars(2**40, values)
    file.scalars(-1, {"early": 0.1})
    file.image(7, "grey", np.full((3, 5, 1), 200, np.uint8))
    file.close()
    start, *found = events(tmp_path / "deep" / "folder")
    assert start.file_version == "brain.Event:2" and not start.HasField("session_log")
    for event, (name, value) in zip(found, values.items(), strict=False):
        assert event.step == 2**40 and event.summary.value[0].tag == name and event.wall_time > 1.7e9
        np.testing.assert_equal(event.summary.value[0].simple_value, np.inf if name == "huge" else float(np.float32(value)))
    assert found[4].step == -1 and found[4].summary.value[0].simple_value == np.float32(0.1)
    picture = found[5].summary.value[0].image
    with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
        assert picture.colorspace == 1 and np.asarray(image).tolist() == [[200] * 5] * 3


def test_checksums_of_event_files(tmp_path):
    """TensorFlow refuses records whose masked CRC-32C is wrong."""
    file = EventFile(tmp_path)
    file.scalars(1, {"loss": 1.0})
    file.close()
    data, count = next(tmp_path.iterdir()).read_bytes(), 0
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        for part, stored in ((data[:8], data[8:12]), (data[12 : 12 + size], data[12 + size : 16 + size])):
            assert struct.unpack("<I", stored)[0] == masked_crc32c(part)
        data, count = data[16 + size :], count + 1
    assert count == 2


def test_a_disk_that_fills_up(tmp_path):
    writers = Writers(tmp_path, 0, tensorboard=False)
    writers._lines.close()
    writers._path, writers._lines = Path("/dev/full"), open("/dev/full", "a", buffering=1)
    with pytest.raises(CheckpointError, match="cannot write /dev/full: No space left"):
        writers.write(1, {"loss": 1.0})
    writers.close()


def test_throughput(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 1e12)
    clock = metrics.Clock(batch_size=8, flops=1e11)
    for _ in range(10):
        now[0] += 0.5
        clock.step(waited=0.1)
    now[0] += 3
    clock.leave_out(3)
    row = clock.row()
    expected = {"images_per_second": 16, "seconds_per_step": 0.5, "data_wait_share": 0.2, "flop_utilisation": 0.2}
    assert row == pytest.approx(expected)
    clock.reset()
    assert clock.row()["data_wait_share"] == 0


def test_peaks():
    kinds = ["TPU v4", "TPU v5 lite", "TPU v5p", "TPU v6 lite", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "cpu"]
    assert [metrics.peak_flops(kind) for kind in kinds] == [275e12, 197e12, 459e12, 918e12, 989e12, 312e12, None]


def test_progress(monkeypatch, caplog, capsys):
    row = {"loss": 0.5, "grad_norm": 1.0, "images_per_second": 99.0, "data_wait_share": 0.25}
    with caplog.at_level("INFO", logger="diffusion_jax"):
        progress = Progress(10, 100)
        progress.update(40, row)
    assert "step 40/100  loss 0.5000" in caplog.text and "99 images/s  data wait 25 %" in caplog.text
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress(10, 100)
    progress.update(40, row)
    progress.close()
    assert "40/100" in capsys.readouterr().err


def test_rows_of_a_run(tmp_path):
    tiny.train(tmp_path, training__eval_every=4, training__tensorboard=True, training__log_every=2, training__steps=4)
    rows = tiny.rows(tmp_path)
    assert [row["step"] for row in rows] == [2, 4]
    expected = "loss grad_norm param_norm images_per_second data_wait_share learning_rate skipped_steps"
    assert set(expected.split()) <= set(rows[0])
    assert any(key.startswith("loss_by_log_snr/") for key in rows[0])
    assert "held_out_loss" not in rows[0] and rows[1]["held_out_loss"] > 0
    assert rows[0]["learning_rate"] == pytest.approx(1e-3)
    assert {event.step for event in events(tmp_path / "tensorboard") if event.summary.value} == {2, 4}
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


LEVELS = [f"loss_by_log_snr/{name}" for name in ("low", "middle", "high")]


def course(rows, seed=0):
    """Losses that fall slowly under 20 % noise, as rows."""
    rng = np.random.default_rng(seed)
    for number in range(rows):
        scale = np.exp(-number / 200)
        yield {level: scale * (k + 1) * np.exp(0.2 * rng.standard_normal()) for k, level in enumerate(LEVELS)} | {"loss": 1.0}


def test_an_ordinary_course_is_not_reported():
    for seed in range(10):
        watch = CollapseWatch()
        assert not any(watch.update(row) for row in course(300, seed))


def test_a_jump_at_one_level_is_reported_when_it_happens():
    watch = CollapseWatch()
    reports = []
    for number, row in enumerate(course(100)):
        if number >= 80:
            row[LEVELS[1]] *= 10
        reports.append(watch.update(row))
    assert not any(reports[:80])
    assert len(reports[80]) == 1 and LEVELS[1] in reports[80][0] and "jumped from about" in reports[80][0]


def test_levels_without_images_and_odd_losses_are_passed_over():
    watch = CollapseWatch(warmup=1)
    for row in ({}, {LEVELS[0]: 1.0}, {LEVELS[0]: None}, {LEVELS[0]: float("nan")}, {LEVELS[0]: 0.0}):
        assert watch.update(row) == []
