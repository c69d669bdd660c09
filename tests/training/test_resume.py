"""Real processes, killed: a resumed run has the numbers of a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time

import jax
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.errors import CheckpointError
from diffusion_jax.training.checkpoints import Checkpointer
from diffusion_jax.training.loop import Loop
from tests.training import tiny

TWENTY = {"training__steps": 20, "training__log_every": 2, "training__eval_every": 10}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(recipe, rows of 20 steps on one device): a row every 2 steps, a checkpoint every 3."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.train(folder / "run", **TWENTY)
    return tiny.recipe(folder, **TWENTY), numbers(folder / "run")


def numbers(workdir):
    """The rows without what depends on the clock."""
    timed = ("images_per_second", "seconds_per_step", "data_wait_share", "flop_utilisation")
    rows = tiny.rows(workdir)
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def start(*arguments, devices=1):
    """A program in the background."""
    return subprocess.Popen(
        tiny.command("train", *arguments), env=tiny.environment(devices), cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, condition, seconds=120):
    """Until something is the case, or the process has ended."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_and_resume(recipe, workdir, kills, rng, *flags):
    """Kill -9 at random moments of training, or in the middle of a save, then let it finish; returns the kills that hit."""
    arguments, hits = [f"--config={recipe}", f"--workdir={workdir}", *flags], 0
    saving = lambda: any("tmp" in path.name for path in workdir.glob("checkpoints/*"))  # noqa: E731
    for number in range(kills):
        process = start(*arguments)
        rows = len(tiny.rows(workdir)) if (workdir / "metrics.jsonl").exists() else 0

        def grown(rows=rows):
            metrics = workdir / "metrics.jsonl"
            return metrics.exists() and metrics.read_text().count("\n") > rows

        wait_for(process, saving if number % 2 else grown)
        time.sleep(rng.uniform(0, 0.02 if number % 2 else 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        hits += process.returncode == -signal.SIGKILL
    result = tiny.run("train", *arguments)
    assert result.returncode == 0, result.stderr
    return hits


@pytest.mark.slow
def test_killed_once(uninterrupted, tmp_path):
    """A program in its own process, killed with -9; this process goes on from what it left, bit by bit."""
    recipe, _ = uninterrupted
    tiny.train(tmp_path / "whole", 8, **TWENTY)
    expected, tmp_path = numbers(tmp_path / "whole"), tmp_path / "run"
    process = start(f"--config={recipe}", f"--workdir={tmp_path}", "--config.training.steps=100000", devices=8)
    wait_for(process, lambda: (tmp_path / "checkpoints" / "6").exists())
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    begun = training.finished_steps(tmp_path)[-1]
    total = 20 if begun < 20 else begun + 2
    tiny.train(tmp_path, 8, **{**TWENTY, "training__steps": total})
    assert numbers(tmp_path)[: len(expected)] == expected


@pytest.mark.slow
def test_killed_ten_times(uninterrupted, tmp_path):
    recipe, _ = uninterrupted
    longer = ["--config.training.steps=3000", "--config.training.log_every=7", "--config.training.checkpoint_every=5"]
    assert tiny.run("train", f"--config={recipe}", f"--workdir={tmp_path / 'whole'}", *longer).returncode == 0
    hits = kill_and_resume(recipe, tmp_path / "run", 10, random.Random(1), *longer)
    assert hits == 10 and numbers(tmp_path / "run") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_resumed_on_eight_devices(uninterrupted, tmp_path, caplog):
    _, expected = uninterrupted
    with caplog.at_level("INFO", logger="diffusion_jax"):
        tiny.train(tmp_path, **{**TWENTY, "training__steps": 5})
        tiny.train(tmp_path, 8, **TWENTY, mesh__fsdp=4)
    assert "Resuming at step 5 of 20" in caplog.text and "8 device" in caplog.text
    assert "Resuming with mesh.fsdp: 1 -> 4" in caplog.text
    found = {row["step"]: row["loss"] for row in numbers(tmp_path)}
    for row in expected[2:]:  # the first run also logged its last step, 5
        np.testing.assert_allclose(found[row["step"]], row["loss"], rtol=1e-4 if row["step"] > 6 else 0.2)


def test_sigterm_saves_and_returns(uninterrupted, tmp_path, caplog, monkeypatch):
    """In the middle of an interval: the next row of the resumed run covers all of it."""
    _, expected = uninterrupted
    fields = {**TWENTY, "training__checkpoint_every": 1000}
    put = training.Program.put

    def stopping(self, batch, calls=[]):  # noqa: B006
        calls.append(batch)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(self, batch)

    with monkeypatch.context() as patch, caplog.at_level("WARNING", logger="diffusion_jax"):
        patch.setattr(training.Program, "put", stopping)
        result = tiny.train(tmp_path, **fields)
    assert result["interrupted"] and result["step"] == 7 and "Run the same command again" in caplog.text
    assert training.finished_steps(tmp_path) == [7]
    assert not tiny.train(tmp_path, **fields)["interrupted"]
    assert numbers(tmp_path) == expected


def test_nothing_comes_from_the_host_unseen(tmp_path):
    """No transfer in the loop but those it says: neither a batch, nor a number, nor a constant."""
    fields = {**TWENTY, "training__grid_every": 10, "training__grid_samples": 4, "training__steps": 10}
    program = tiny.prepare(**fields)
    state, sums = program.init(), program.zero_metrics()
    checkpointer = Checkpointer(tmp_path)
    loop, _ = Loop(program, checkpointer, tmp_path, 0), program.step
    with jax.transfer_guard("disallow"):
        row = loop.run(state, sums, threading.Event())
    checkpointer.close()
    assert row["step"] == 10 and row["held_out_loss"] > 0 and (tmp_path / "grids" / "step_0000010.png").exists()


def test_another_configuration_is_refused(tmp_path):
    tiny.train(tmp_path, training__steps=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="optimizer.learning_rate: 0.001 -> 0.5"):
        tiny.train(tmp_path, training__steps=3, optimizer__learning_rate=0.5)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def pair(recipe, workdir, port, *flags):
    """Two processes of four devices each."""
    return [
        start(
            f"--config={recipe}", f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}", "--num_processes=2",
            f"--process_id={number}", "--heartbeat_seconds=10", *flags, devices=4,
        )
        for number in (0, 1)
    ]  # fmt: skip


def finish(processes):
    """(return codes, logs)."""
    logs = [process.communicate(timeout=240)[1] for process in processes]
    return [process.returncode for process in processes], logs


@pytest.fixture
def port():
    return random.Random().randint(20000, 60000)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [[], pytest.param(["--config.mesh.data=1", "--config.mesh.tensor=8"], marks=pytest.mark.slow)])
def test_two_processes_are_one_run(uninterrupted, tmp_path, port, mesh):
    """Batches split over the processes; and, with the tensor axis across both, the same for both."""
    recipe, expected = uninterrupted
    codes, logs = finish(pair(recipe, tmp_path, port, *mesh))
    assert codes == [0, 0], logs
    found = numbers(tmp_path)
    for key in ("step", "loss", "param_norm"):
        np.testing.assert_allclose([row[key] for row in found], [row[key] for row in expected], rtol=1e-4)
    held_out = [row["held_out_loss"] for row in expected if "held_out_loss" in row]
    np.testing.assert_allclose([row["held_out_loss"] for row in found if "held_out_loss" in row], held_out, rtol=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes(uninterrupted, tmp_path, port):
    """Both save the same step and exit well; run again, they go on."""
    recipe, _ = uninterrupted
    processes = pair(recipe, tmp_path, port, "--config.training.steps=1000000")
    wait_for(processes[0], (tmp_path / "metrics.jsonl").exists)
    processes[1].send_signal(signal.SIGTERM)
    codes, logs = finish(processes)
    assert codes == [0, 0], logs
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert all(f"saved step {saved}" in log for log in logs)
    codes, logs = finish(pair(recipe, tmp_path, port + 1, f"--config.training.steps={saved + 4}"))
    assert codes == [0, 0] and f"Resuming at step {saved}" in logs[0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_peer_ends_the_other(uninterrupted, tmp_path, port, victim):
    recipe, _ = uninterrupted
    processes = pair(recipe, tmp_path, port, "--config.training.steps=1000000")
    wait_for(processes[0], (tmp_path / "metrics.jsonl").exists)
    processes[victim].kill()
    began = time.monotonic()
    said = processes[1 - victim].communicate(timeout=120)[1]
    assert processes[1 - victim].returncode == 17 and time.monotonic() - began < 40
    assert said.splitlines()[-1].startswith("train: error: another process of this job has gone; start all of them again")
    processes[victim].communicate()


@pytest.mark.slow
def test_a_mistake_ends_both_processes(uninterrupted, tmp_path, port):
    recipe, _ = uninterrupted
    began = time.monotonic()
    codes, logs = finish(pair(recipe, tmp_path, port, "--config.data.batch_size=12"))
    assert codes == [2, 2] and all("does not divide" in log for log in logs) and time.monotonic() - began < 60
