"""Real processes, killed: a resumed run has the numbers of a run that was never stopped."""

from __future__ import annotations

import random
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.training import tiny


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(recipe, losses of 10 steps on one device)."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = tiny.recipe(folder)
    result = tiny.run("train", f"--config={recipe}", f"--workdir={folder / 'run'}")
    assert result.returncode == 0, result.stderr
    return recipe, tiny.losses(folder / "run")


def kill_and_resume(recipe, workdir, kills, rng, *flags):
    """Kill -9 at random moments after the first step, or in the middle of a save; then let it finish."""
    arguments = [f"--config={recipe}", f"--workdir={workdir}", *flags]
    for _ in range(kills):
        process = subprocess.Popen(
            tiny.command("train", *arguments), env=tiny.environment(), cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True
        )
        wait_for = rng.choice(["a step", "a save"])
        deadline = time.monotonic() + 120
        before = len(list(workdir.glob("checkpoints/*")))
        while process.poll() is None and time.monotonic() < deadline:
            if wait_for == "a save" and len(list(workdir.glob("checkpoints/*"))) > before:
                break  # the temporary directory of a save in progress
            if wait_for == "a step" and (workdir / "metrics.jsonl").exists():
                time.sleep(rng.uniform(0, 0.5))
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    result = tiny.run("train", *arguments)
    assert result.returncode == 0, result.stderr
    return tiny.losses(workdir)


def test_killed_twice(uninterrupted, tmp_path):
    recipe, expected = uninterrupted
    found = kill_and_resume(recipe, tmp_path / "run", 2, random.Random(0), "--config.training.checkpoint_every=1")
    assert found == expected


@pytest.mark.slow
def test_killed_ten_times(uninterrupted, tmp_path):
    recipe, _ = uninterrupted
    longer = ["--config.training.steps=60", "--config.training.checkpoint_every=2"]
    assert tiny.run("train", f"--config={recipe}", f"--workdir={tmp_path / 'whole'}", *longer).returncode == 0
    found = kill_and_resume(recipe, tmp_path / "run", 10, random.Random(1), *longer)
    assert found == tiny.losses(tmp_path / "whole")


def test_resumed_on_eight_devices(uninterrupted, tmp_path):
    recipe, expected = uninterrupted
    arguments = [f"--config={recipe}", f"--workdir={tmp_path}"]
    assert tiny.run("train", *arguments, "--config.training.steps=5").returncode == 0
    result = tiny.run("train", *arguments, "--config.mesh.fsdp=4", devices=8)
    assert result.returncode == 0 and "Resuming at step 5 of 10" in result.stderr and "8 device" in result.stderr
    found = tiny.losses(tmp_path)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


def test_sigterm_saves_and_exits_well(uninterrupted, tmp_path):
    recipe, expected = uninterrupted
    arguments = [f"--config={recipe}", f"--workdir={tmp_path}", "--config.training.checkpoint_every=1000"]
    process = subprocess.Popen(
        tiny.command("train", *arguments, "--config.training.steps=100000"),
        env=tiny.environment(), cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0 and "Run the same command again" in log, log
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(saved) == 1
    found = tiny.losses(tmp_path)
    assert max(found) == saved[0]
    shared = [step for step in found if step in expected]
    assert shared and [found[step] for step in shared] == [expected[step] for step in shared]


def test_another_configuration_is_refused(uninterrupted, tmp_path):
    recipe, _ = uninterrupted
    arguments = [f"--config={recipe}", f"--workdir={tmp_path}", "--config.training.steps=3"]
    assert tiny.run("train", *arguments).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = tiny.run("train", *arguments, "--config.optimizer.learning_rate=0.5")
    assert result.returncode == 2 and "optimizer.learning_rate: 0.001 -> 0.5" in result.stderr
    assert "Traceback" not in result.stderr
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_are_one_run(uninterrupted, tmp_path):
    """Two real processes of four devices: the losses of one process; a killed peer ends the other."""
    recipe, expected = uninterrupted
    port = random.Random().randint(20000, 40000)

    def start(number, steps, workdir):
        flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}", "--heartbeat_seconds=10"]
        return subprocess.Popen(
            tiny.command("train", f"--config={recipe}", f"--workdir={workdir}", f"--config.training.steps={steps}", *flags),
            env=tiny.environment(4), cwd=tiny.ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    processes = [start(number, 10, tmp_path / "run") for number in (0, 1)]
    logs = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    found = tiny.losses(tmp_path / "run")
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)

    port += 1
    processes = [start(number, 100_000, tmp_path / "long") for number in (0, 1)]
    deadline = time.monotonic() + 200
    while not (tmp_path / "long" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    processes[1].kill()
    began = time.monotonic()
    processes[0].communicate(timeout=120)
    assert processes[0].returncode != 0 and time.monotonic() - began < 60
