"""A real folder of real image files, and every way in which it can be wrong."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.sources import Folder
from diffusion_jax.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    """Twelve images in two classes, in three formats."""
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / ("cats", "dogs")[index % 2] / "deeper" / f"{index}{('.png', '.jpg', '.webp')[index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_classes_are_the_first_sub_folders(folder):
    source = Folder(str(folder), test_fraction=0.0)
    assert len(source) == 12 and source.class_names == ("cats", "dogs") and source.num_classes == 2
    assert {example["label"] for example in (source[i] for i in range(12))} == {0, 1}
    assert source[0]["image"].shape == (8, 10, 3) and source[0]["image"].dtype == np.uint8
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3]["image"], source[3]["image"])


def test_splits_are_disjoint_and_depend_on_names_alone(folder):
    names = lambda split: {row["file_name"] for row in Folder(str(folder), split=split, test_fraction=0.4)._rows}  # noqa: E731
    train, test = names("train"), names("test")
    assert train and test and not train & test and len(train | test) == 12
    Image.new("RGB", (4, 4)).save(folder / "cats" / "new.png")
    assert train <= names("train") and test <= names("test")


def test_without_sub_folders_there_are_no_classes(tmp_path):
    for index in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.PNG")
    source = Folder(str(tmp_path), test_fraction=0.0)
    assert source.num_classes == 0 and "label" not in source[0]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_files(folder, kind):
    rows = [
        {"file_name": "cats/deeper/0.png", "label": "tabby", "caption": "a cat, asleep"},
        {"file_name": "dogs/deeper/3.png", "label": "hound", "caption": "a dog"},
    ]
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        text = "file_name,label,caption\n" + "".join(f'{r["file_name"]},{r["label"]},"{r["caption"]}"\n' for r in rows)
        (folder / "metadata.csv").write_text(text)
    source = Folder(str(folder), test_fraction=0.0)
    assert len(source) == 2 and source.class_names == ("hound", "tabby")
    assert source[0]["caption"] == "a cat, asleep" and source[0]["label"] == 1


def test_images_are_shown_as_they_are_meant(tmp_path):
    """EXIF orientation is applied; palettes and alpha become RGBA."""
    sideways = Image.fromarray(np.dstack([np.full((4, 8), 255, np.uint8)] + [np.zeros((4, 8), np.uint8)] * 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    sideways.save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (5, 5), (0, 0, 0, 0)).save(tmp_path / "b.png")
    Image.new("L", (5, 5), 7).save(tmp_path / "c.png")
    source = Folder(str(tmp_path), test_fraction=0.0)
    assert [source[i]["image"].shape for i in range(3)] == [(8, 4, 3), (5, 5, 4), (5, 5, 1)]


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [truncate, lambda p: p.write_text("not an image"), lambda p: p.write_bytes(b"")])
def test_a_bad_image_is_named_or_skipped_and_counted(folder, damage, caplog):
    bad = folder / "dogs" / "deeper" / "3.png"
    damage(bad)
    with pytest.raises(DataError, match=r"3\.png is corrupt.*set skip_corrupt=True"):
        Folder(str(folder), test_fraction=0.0)
    source = Folder(str(folder), test_fraction=0.0, skip_corrupt=True)
    assert len(source) == 11 and source.skipped == 1 and "3.png" in caplog.text
    unverified = Folder(str(folder), test_fraction=0.0, verify=False)
    place = next(i for i, row in enumerate(unverified._rows) if row["file_name"].endswith("/3.png"))
    with pytest.raises(DataError, match=r"3\.png"):
        unverified[place]


def test_a_folder_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(DataError, match="no directory.*set data.source.path"):
        Folder(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no images.*\.png, \.jpg, \.jpeg, \.webp"):
        Folder(str(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="left in the split 'test'"):
        Folder(str(tmp_path), split="test", test_fraction=0.0)
    with pytest.raises(ConfigError, match="test_fraction"):
        Folder(str(tmp_path), test_fraction=1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "cats/none.png"}\n', "line 1: file_name 'cats/none.png' is not a file"),
        ('{"file_name": "cats/deeper/0.png", "lable": "x"}\n', "did you mean 'label'"),
        ("{nonsense\n", "line 1 is not JSON"),
        (
            '{"file_name": "cats/deeper/0.png", "label": "x"}\n{"file_name": "dogs/deeper/3.png"}\n',
            "1 of 2 rows have no label",
        ),
    ],
)
def test_metadata_that_does_not_fit(folder, text, message):
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        Folder(str(folder))
