"""What ends a run, or comes in its way: Ctrl-C, a second trainer, steps that are all skipped, hostile files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import pytest

from diffusion_jax import train as program
from diffusion_jax import training
from diffusion_jax.errors import CheckpointError, ConfigError, DataError
from diffusion_jax.files import only_writer
from diffusion_jax.training import config as configs
from diffusion_jax.training.metrics import Writers
from tests import processes
from tests.programs import in_process
from tests.training import tiny

FOREVER = ["--config.training.steps=1000000", "--config.training.log_every=50"]


def start(*arguments):
    """The program in the background."""
    command = processes.after(processes.CTRL_C, tiny.command("train", *arguments))
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=tiny.environment(1), cwd=tiny.ROOT, **piped)


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_ctrl_c_is_answered_and_saves(tmp_path):
    """In a process of its own; the lock of the first one there does not stand in the way of this process."""
    recipe, run = tiny.recipe(tmp_path), tmp_path / "run"
    process = start(f"--config={recipe}", f"--workdir={run}", *FOREVER)
    wait_for(process, lambda: (run / "metrics.jsonl").exists() and tiny.rows(run))
    with pytest.raises(DataError, match=rf"{run} is being written by process {process.pid} on .* \(training\): wait for it"):
        tiny.train(run)
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=60)[0].splitlines()
    saved = training.finished_steps(run)[-1]
    assert process.returncode == 0 and lines[-1] == "Next: the same command again, to go on."
    assert (
        lines[-4] == "stopping after this step and saving; Ctrl-C again to stop at once" and f"saved step {saved}" in lines[-3]
    )
    (run / f".metrics.jsonl.{process.pid}.tmp").write_text("left by a killed program")
    assert tiny.train(run, training__steps=saved + 1, training__log_every=50)["step"] == saved + 1
    assert not list(run.glob(".*.tmp"))


@pytest.mark.slow
def test_ctrl_c_at_any_moment(tmp_path):
    """From the first import on: a few lines, ours the last, nothing half-written, and the run goes on."""
    recipe, run, rng = tiny.recipe(tmp_path), tmp_path / "run", random.Random(0)
    for _ in range(12):
        process = start(f"--config={recipe}", f"--workdir={run}", *FOREVER, "--config.training.log_every=100000")
        time.sleep(rng.uniform(0.3, 6))
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        lines = process.communicate(timeout=60)[0].splitlines()
        assert time.monotonic() - began < 10 and len(lines) <= 10, lines
        assert (process.returncode, lines[-1]) in [
            (130, "train: interrupted"),
            (0, "Next: the same command again, to go on."),
        ], lines
    assert tiny.run("train", f"--config={recipe}", f"--workdir={run}").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "truncated"])
def test_faults_of_a_disk_are_a_few_lines(tmp_path, fault):
    recipe, run = tiny.recipe(tmp_path), tmp_path / "run"
    tiny.train(run)
    command = tiny.command("train", f"--config={recipe}", f"--workdir={run}", "--config.training.steps=20")
    if fault == "full":
        command = processes.after(processes.FULL_DISK, command)
    else:
        for step in training.finished_steps(run):
            for path in (run / "checkpoints" / str(step) / "state").rglob("d/*"):
                path.write_bytes(path.read_bytes()[:100])
    began = time.monotonic()
    result = subprocess.run(command, env=tiny.environment(1), cwd=tiny.ROOT, text=True, capture_output=True, timeout=100)
    lines = [line for line in result.stderr.splitlines() if " I " not in line]
    assert result.returncode == 2 and len(lines) <= 10 and time.monotonic() - began < 60, result.stderr
    expected = "cannot save a checkpoint" if fault == "full" else "none of the checkpoints [6, 9, 10]"
    assert lines[-1].startswith("train: error: ") and expected in lines[-1]


def test_a_second_trainer_is_refused(tmp_path):
    with only_writer(tmp_path / "run", "training"), pytest.raises(DataError, match="is being written by process"):
        tiny.train(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".writer"]
    assert tiny.train(tmp_path / "run", training__steps=1)["step"] == 1


ALWAYS = {"system": {"name": "toy", "bad_label": 0}, "data__source": {"name": "noise", "size": 1}}


@pytest.mark.parametrize(
    ("fields", "at"),
    [({"max_skipped": 4, "log_every": 3}, 6), ({"max_skipped": 4, "log_every": 1}, 4), ({"steps": 5}, 5)],
)
def test_a_run_that_skips_every_step_stops(tmp_path, fields, at):
    overrides = {f"training__{name}": value for name, value in fields.items()}
    with pytest.raises(ConfigError, match=f"the last {at} steps up to {at} were all skipped.*lower optimizer.learning_rate"):
        tiny.train(tmp_path, **ALWAYS, **overrides, training__checkpoint_every=100)
    assert not training.finished_steps(tmp_path)


def test_a_run_may_skip_for_ever_or_now_and_then(tmp_path):
    assert tiny.train(tmp_path / "ever", **ALWAYS, training__max_skipped=0)["skipped"] == 10
    some = {"system": {"name": "toy", "bad_label": 0}, "training__max_skipped": 3, "training__checkpoint_every": 100}
    assert 3 < tiny.train(tmp_path / "some", **some, training__steps=80)["skipped"] < 40  # but never three on end


def test_what_a_run_says(tmp_path, caplog):
    """That it compiles, and for how long; that there is nothing to train; what comes next."""
    with caplog.at_level("INFO", logger="diffusion_jax"):
        tiny.train(tmp_path, training__steps=2)
        assert "Compiling the training step ..." in caplog.text and "Compiled the training step in " in caplog.text
        caplog.clear()
        tiny.train(tmp_path, training__steps=2)
    assert "Nothing to train: step 2 is reached; raise training.steps" in caplog.text and "Compiling" not in caplog.text


def test_the_last_line_names_the_next_command(tmp_path, monkeypatch):
    done = {"step": 10, "interrupted": False}
    monkeypatch.setattr(training, "train", lambda *_, **__: done)
    call = lambda: in_process.call(program, f"--config={tiny.recipe(tmp_path)}", "--workdir=my run")  # noqa: E731
    assert call().splitlines()[-1] == "Next: python -m diffusion_jax.sample --workdir='my run' --out='my run'/samples"
    done["interrupted"] = True
    assert call().splitlines()[-1] == "Next: the same command again, to go on."


def test_a_dry_run_prints_the_resolved_configuration(tmp_path):
    printed = in_process.call(
        program, f"--config={tiny.recipe(tmp_path)}", "--dry_run", "--config.training.steps=7", "--config.mesh.data=8"
    )
    table, _, config = printed.partition("\n{")
    assert "memory per device" in table
    found = json.loads("{" + config)
    assert found["training"]["steps"] == 7 and found["training"]["max_skipped"] == 100 and found["system"]["name"] == "toy"


def test_metrics_that_are_removed_under_a_run(tmp_path, caplog):
    writers = Writers(tmp_path, 0, tensorboard=False)
    writers.write(1, {"loss": 1.0})
    os.rename(tmp_path / "metrics.jsonl", tmp_path / "mine.jsonl")
    for step in (2, 3):
        writers.write(step, {"loss": 1.0})
    writers.close()
    assert caplog.text.count("metrics.jsonl was removed or replaced: it is written anew from step 2 on") == 1
    assert list(tiny.losses(tmp_path)) == [2, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("garbage", "metrics.jsonl, line 2: not JSON"),
        ("[1]", "metrics.jsonl, line 2: a list"),
        ('{"loss": 1.0}', "line 2: no whole number 'step'"),
        ('{"step": "1"}', "line 2: no whole number 'step'"),
        ('{"step": 1, "loss": "high"}', "line 2: 'loss' is no number"),
    ],
)
def test_hostile_metrics(tmp_path, line, message):
    text = f'{{"step": 1, "loss": 1.0}}\n{line}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Writers(tmp_path, 10)
    assert (tmp_path / "metrics.jsonl").read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": ', "config.json, the configuration of a run, cannot be read"),
        ("\x00\x01", "cannot be read"),
        ("[1]", "it holds a list, not a dict"),
        ("{}", "it has no section 'system'"),
        ('{"system": 3, "data": {}}', "it has no section 'system'"),
        ('{"system": {}, "data": [], "imports": []}', "it has no section 'data'"),
        ('{"system": {}, "data": {}, "imports": 3, "version": 2}', "its 'imports' are no list"),
    ],
)
def test_hostile_configurations(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as raised:
        configs.read(tmp_path)
    assert "restore it from the recipe" in str(raised.value) and "\n" not in str(raised.value)
