"""A run whose data change between two starts: stopped with the difference, in training and in what comes after."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from diffusion_jax.errors import CheckpointError, ConfigError, DataError
from diffusion_jax.evaluation import Case, Evaluator, Settings
from diffusion_jax.inference.run import Run
from diffusion_jax.training import data_record
from tests.data.test_record import CHANGES, rename
from tests.training import tiny


@pytest.fixture
def folder(tmp_path):
    """Images in the ten classes that the tiny system has."""
    for index in range(40):
        path = tmp_path / "images" / ("cat", "dog", *"abcdefgh")[index % 10] / f"{index // 10 * 10 + index % 2 * 3}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 50).save(path)
    Image.effect_noise((8, 8), 50).save(tmp_path / "images" / "dog" / "3.png")
    return tmp_path / "images"


def _train(workdir, folder, steps=1, **options):
    fields = {"data__source": {"name": "folder", "path": str(folder)}, "data__batch_size": 4, "training__steps": steps}
    return tiny.train(workdir, **fields, **options)


@pytest.mark.parametrize(("alter", "message"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_run_does_not_go_on_with_other_data(alter, message, folder, tmp_path, caplog):
    run = tmp_path / "run"
    _train(run, folder)
    record = json.loads((run / "data.json").read_text())
    assert record["class_names"] == sorted(("cat", "dog", *"abcdefgh")) and record["images"] == len(record["files"])
    before = (run / "data.json").read_bytes(), (run / "config.json").read_bytes()
    tiny._MADE.clear()  # programs that are shared hold the source as it was
    alter(folder)
    start = message.split(" added")[0].split(" removed")[0].split(" changed")[0]
    with pytest.raises(DataError, match=f"{start}.*restore them, or go on with --allow_other_data") as raised:
        _train(run, folder, steps=2)
    assert "\n" not in str(raised.value)
    assert ((run / "data.json").read_bytes(), (run / "config.json").read_bytes()) == before
    for split in ("train", "test"):
        with pytest.raises(DataError, match=f"{start}.*or remove .*data.json"):
            Run(run).pipeline(split)
    with pytest.raises(DataError, match="no directory"):  # data of one's own are not held against the record
        Run(run, {"data.source.path": str(tmp_path / "other")}).pipeline()
    assert _train(run, folder, steps=2, allow=True)["step"] == 2
    assert "Going on with other data" in caplog.text and Run(run).pipeline("test")


def test_a_directory_without_a_checkpoint_begins_anew(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "data.json").write_text('{"class_names": ["old"]}')
    _train(run, folder)
    assert "cat" in data_record.read(run).description["class_names"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"class_names": 3}', '{"class_names": [], "files": []}', "\x00", "[" * 9999])
def test_a_damaged_record_is_one_line(text, tmp_path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"data\.json.*remove it") as raised:
        data_record.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_hosts_can_compare_what_their_data_are(folder):
    before = data_record.data_identity(tiny.prepare(data__source={"name": "folder", "path": str(folder)}).pipeline)
    tiny._MADE.clear()
    rename(folder)
    now = data_record.data_identity(tiny.prepare(data__source={"name": "folder", "path": str(folder)}).pipeline)
    assert "files" not in now and now["digest"] != before["digest"] and now["class_names"] != before["class_names"]


def test_an_evaluation_of_a_run_whose_data_changed_is_stopped(folder, tmp_path):
    """A sweep goes on with what was evaluated before, and stops at the next case."""
    run = tmp_path / "run"
    _train(run, folder)
    tiny._MADE.clear()
    settings = Settings(num=4, classifier_steps=1, metrics=("loss",))
    cases = [Case((1,), {"steps": [steps]}) for steps in (1, 2)]
    first = Evaluator([str(run)], tmp_path / "out", settings).evaluate(cases[0])
    (folder / "cat").rename(folder / "zebra")
    again = Evaluator([str(run)], tmp_path / "out", settings)
    assert again.evaluate(cases[0])["metrics"] == first["metrics"]
    with pytest.raises(DataError, match="the data are not those that the run was trained on: class 'cat' removed"):
        again.evaluate(cases[1])
    assert len(again.results.rows) == 1


def test_classes_are_asked_for_by_name_without_the_data(folder, tmp_path):
    run = tmp_path / "run"
    _train(run, folder)
    tiny._MADE.clear()
    shutil.rmtree(folder)
    assert len(Run(run).sample(labels=["dog", "cat", 3])) == 3
    with pytest.raises(ConfigError, match=r"unknown class 'dgo'; did you mean 'dog'\? \(the run's classes: a, b, c"):
        Run(run).sample(labels=["dgo"])
