"""What data are without reading them, and how two of them differ."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data.record import Recorded, brief, described, differences
from diffusion_jax.data.sources import Folder, Photographs, Shapes, digits
from diffusion_jax.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Twenty images in two classes."""
    for index in range(20):
        path = tmp_path / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4 + index, 4), index).save(path)
    return tmp_path


def add(folder):
    Image.new("L", (4, 4)).save(folder / "cat" / "new.png")


def remove(folder):
    (folder / "dog" / "3.png").unlink()


def change(folder):
    Image.effect_noise((40, 40), 90).save(folder / "dog" / "3.png")


def rename(folder):
    """All labels shift: the class that was the first becomes the last."""
    (folder / "cat").rename(folder / "zebra")


CHANGES = [
    (add, "file cat/new.png added"),
    (remove, "file dog/3.png removed"),
    (change, "file dog/3.png changed in size"),
    (rename, "class 'cat' removed; class 'zebra' added; files cat/0.png, cat/10.png, cat/12.png and 7 more removed"),
]


@pytest.mark.parametrize(("alter", "message"), CHANGES)
@pytest.mark.parametrize("listed", [True, False])
def test_a_folder_that_changed_is_told_by_either_split_without_decoding(folder, alter, message, listed, monkeypatch):
    before = described(Folder(str(folder)))
    assert before["images"] == 20 and before["classes"] == {"cat": 10, "dog": 10} and len(before["files"]) == 20
    before = before if listed else brief(before)  # as of more files than are listed
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    for split in ("train", "test"):
        source = Folder(str(folder), split=split, verify=False)
        assert differences(before, described(source, split)) == []
    alter(folder)
    for split in ("train", "test"):
        changed = "; ".join(differences(before, described(Folder(str(folder), split=split, verify=False), split)))
        assert message in changed if listed else changed, changed
    if not listed and alter is add:
        assert changed == "class 'cat' of 10 images has 11"


def test_labels_and_captions_count(folder):
    row = '{{"file_name": "cat/{}.png", "label": "{}"}}\n'.format
    metadata = folder / "metadata.jsonl"
    metadata.write_text(row(0, "a") + row(2, "b"))
    before = described(Folder(str(folder), verify=False))
    metadata.write_text(row(0, "b") + row(2, "a"))
    assert differences(before, described(Folder(str(folder), verify=False))) == [
        "names or sizes of files, labels or captions changed"
    ]


def test_other_sources_say_what_they_know():
    assert described(digits()) == {"source": "digits", "class_names": list("0123456789"), "count": 1617}
    assert "count" not in described(digits("test"), "test")
    assert differences(described(digits()), described(digits("test"), "test")) == []
    assert differences(described(Shapes(size=16)), described(Shapes(size=16, num_examples=5))) == ["count was 10000, now 5"]
    assert "china.jpg" in described(Photographs(size=16))["photographs"]
    words = {"name": "one_hot_words", "source": "shapes", "vocabulary": ["a"]}
    config = {"source": words, "image_size": 16, "batch_size": 4}
    assert described(data.Data(config).source())["source"] == "one-hot words of shapes"


def test_classes_in_another_order_are_a_difference():
    before = {"class_names": ["a", "b"]}
    assert differences(before, {"class_names": ["b", "a"]}) == ["classes in another order: ['a', 'b'] became ['b', 'a']"]


def test_data_are_held_against_their_record_when_they_are_opened(folder):
    config = {"source": {"name": "folder", "path": str(folder)}, "image_size": 4, "channels": 1, "batch_size": 2}
    recorded = Recorded(described(data.Data(config).source()), "restore them")
    assert data.Data(config, recorded=recorded).class_names == ("cat", "dog")
    np.testing.assert_array_equal(data.Data(config, recorded=recorded).pipeline("test").batch(0)["label"] >= 0, True)
    rename(folder)
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"not those that the run was trained on: class 'cat' removed.*; restore them"):
            data.Data(config, recorded=recorded).pipeline(split)
