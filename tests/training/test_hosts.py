"""Two processes, as on two hosts: what differs is refused, what fails on one ends both, and who is gone is said."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffusion_jax
from tests import processes
from tests.training import tiny

CONFIG = {
    "seed": "--config.seed=2",
    "optimizer.learning_rate": "--config.optimizer.learning_rate=0.5",
    "data.batch_size": "--config.data.batch_size=32",
    "system.noiseless": "--config.system.noiseless=True",
    "training.steps": "--config.training.steps=11",
    "training.checkpoint_every": "--config.training.checkpoint_every=5",
}


def start(number, port, folder, *flags, path=tiny.ROOT, first="pass"):
    """One of the two, in a folder of its own; its process executes a statement first."""
    folder.mkdir(exist_ok=True)
    command = tiny.command(
        "train", f"--config={tiny.recipe(folder.parent)}", f"--workdir={folder.parent / 'run'}", "--heartbeat_seconds=10",
        f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}", *flags,
    )  # fmt: skip
    environment = {**tiny.environment(1), "PYTHONPATH": f"{path}:{tiny.ROOT}"}
    return subprocess.Popen(processes.after(first, command), env=environment, cwd=folder, text=True, stderr=subprocess.PIPE)


def finish(pair):
    """(exit statuses, last lines, seconds)."""
    began = time.monotonic()
    lines = [process.communicate(timeout=120)[1].splitlines() for process in pair]
    return [process.returncode for process in pair], [given[-1] for given in lines], time.monotonic() - began


@pytest.fixture
def port():
    return random.Random().randint(20000, 60000)


@pytest.mark.parametrize("field", [name if name == "seed" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIG])
def test_configurations_that_differ_are_refused(tmp_path, port, field):
    codes, lines, seconds = finish([start(0, port, tmp_path / "0"), start(1, port, tmp_path / "1", CONFIG[field])])
    assert codes == [2, 2], lines
    assert all(f"the processes differ in the configuration: {field} is " in line for line in lines), lines
    assert seconds < 60 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_code_that_differs_is_refused(tmp_path, port):
    other = tmp_path / "other" / "diffusion_jax"
    shutil.copytree(Path(diffusion_jax.__file__).parent, other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "training" / "step.py").open("a") as file:
        file.write("# another loss\n")
    codes, lines, _ = finish([start(0, port, tmp_path / "0"), start(1, port, tmp_path / "1", path=other.parent)])
    assert codes == [2, 2] and all("code.training/step.py is " in line for line in lines), lines


@pytest.mark.slow
def test_data_that_differ_are_refused(tmp_path, port):
    for number in (0, 1):
        folder = tmp_path / str(number) / "images"
        folder.mkdir(parents=True)
        for index in range(20 + number):
            Image.fromarray(np.full((8, 8), index, np.uint8)).save(folder / f"{index}.png")
    source = "--config.data.source={'name': 'folder', 'path': 'images'}"
    codes, lines, _ = finish([start(number, port, tmp_path / str(number), source) for number in (0, 1)])
    assert codes == [2, 2] and all(
        "differ in the data: images is 20 in process 0, 21 in process 1" in line for line in lines
    ), lines


@pytest.mark.slow
def test_a_mistake_on_one_ends_both(tmp_path, port):
    """While the other waits for it: one has no recipe."""
    (tmp_path / "0").mkdir()
    shutil.copy(tiny.recipe(tmp_path), tmp_path / "0" / "mine.py")
    codes, lines, _ = finish([start(number, port, tmp_path / str(number), "--config=mine.py") for number in (0, 1)])
    assert codes == [2, 2], lines
    assert lines[0].startswith("train: error: process 1: no recipe 'mine.py'") and "error: no recipe" in lines[1]


@pytest.mark.slow
def test_nobody_comes(tmp_path, port):
    """Neither to the coordinator, nor does it answer: one line, and a status that is worth another try."""
    pair = [start(number, port + number, tmp_path / str(number), "--join_seconds=3") for number in (0, 1)]
    codes, lines, seconds = finish(pair)
    assert codes == [17, 17] and seconds < 40
    assert all("could not join the other processes" in line and "raise --join_seconds" in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_on_one_ends_both_at_once(tmp_path, port, victim):
    """Orbax would have the others wait for 20 minutes."""
    flags = ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.system.width=64", "--config.training.steps=1000000"]
    first = {victim: processes.FULL_DISK, 1 - victim: "pass"}
    pair = [start(number, port, tmp_path / str(number), *flags, first=first[number]) for number in (0, 1)]
    while not list((tmp_path / "run").glob("checkpoints/3*")):
        time.sleep(0.05)
    codes, lines, seconds = finish(pair)
    assert codes == [2, 2] and seconds < 20, (codes, lines, seconds)
    assert all("cannot save a checkpoint" in line and "the disk is full" in line for line in lines), lines
    assert lines[1 - victim].startswith(f"train: error: process {victim}: ")
