"""Files of a person's: JSON that is checked when it is read, files that appear whole, one writer a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from diffusion_jax import files
from diffusion_jax.errors import CheckpointError, DataError

HOSTILE = {
    "nothing": b"",
    "garbage": bytes(range(256)),
    "cut": b'{"a": [1, 2',
    "deep": b"[" * 100_000,
    "another kind": b"[1, 2]",
    "a number": b"7",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_json_that_is_not_what_it_should_be_is_one_line(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="settings.json") as raised:
        files.read_json(path, "the settings of the samples")
    assert "\n" not in str(raised.value) and "restore it" in str(raised.value)


@pytest.mark.parametrize("content", [*HOSTILE.values(), b'{"a": 1}\nnonsense\n', b'{"b": 1}\n'], ids=[*HOSTILE, "row", "key"])
def test_json_lines_name_the_file_and_the_line(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    check = lambda row: None if "a" in row else "no 'a'"  # noqa: E731
    if content:
        with pytest.raises(DataError, match="rows.jsonl") as raised:
            list(files.read_json_lines(path, "a row", check=check))
        assert "\n" not in str(raised.value)
    else:
        assert list(files.read_json_lines(path, "a row")) == []


def test_no_file_and_a_directory_in_its_place(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            files.read_json(path, "a record", error=CheckpointError)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert files.read_json(tmp_path / "a.json", "a") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / ".a.json.123.tmp").write_text("left by a killed program")
    (tmp_path / ".hidden").write_text("a person's")
    assert [path.name for path in files.sweep_temporary(tmp_path)] == [".a.json.123.tmp"]
    assert (tmp_path / ".hidden").exists()


def test_homes_are_expanded_wherever_flags_hold_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = {"workdir": ["~/a", "b"], "out": "~/c", "text": "a ~/d", "num": 3, "step": None, "odd": "~nobody-here/x"}
    expected = {**values, "workdir": ["/home/me/a", "b"], "out": "/home/me/c"}
    assert files.user_paths(values) == expected
    assert str(files.user_path("~/c")) == "/home/me/c" and str(files.user_path("~nobody-here/x")) == "~nobody-here/x"


_HOLD = """
import sys, time, pathlib
from diffusion_jax.files import only_writer
with only_writer(pathlib.Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_writer_a_folder_while_it_lives(tmp_path):
    folder = tmp_path / "run"
    held = subprocess.Popen([sys.executable, "-c", _HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert held.stdout.readline() == "held\n"
    with pytest.raises(DataError, match=rf"run is being written by process {held.pid} on .*\(training\): wait for it"):
        with files.only_writer(folder, "training"):
            pass
    os.kill(held.pid, signal.SIGKILL)
    held.wait()
    for _ in range(50):  # the kernel lets go of the lock when the process is gone
        try:
            with files.only_writer(folder, "training"):
                break
        except DataError:
            time.sleep(0.1)
    else:
        pytest.fail("a dead writer's lock stands in the way")


def test_paths_of_a_person_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/pictures") == tmp_path / "pictures"
