"""A real folder of real image files, and every way in which it can be wrong."""

from __future__ import annotations

import json
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.files import load_image, named_files, read_image
from diffusion_jax.data.sources import Folder
from diffusion_jax.errors import DataError


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


def _names(folder, split, **fields):
    return {row["file_name"] for row in Folder(str(folder), split=split, **fields)._rows}


def test_splits_are_disjoint_and_depend_on_names_alone(folder):
    train, test = (_names(folder, split, test_fraction=0.4) for split in ("train", "test"))
    assert train and test and not train & test and len(train | test) == 12
    plain = {split: _names(folder, split, test_fraction=0.4, stratified=False) for split in ("train", "test")}
    assert plain["train"] and plain["test"]
    Image.new("RGB", (4, 4)).save(folder / "cats" / "new.png")
    assert all(names <= _names(folder, split, test_fraction=0.4, stratified=False) for split, names in plain.items())
    assert len(train - _names(folder, "train", test_fraction=0.4)) <= 2, "an image more moves few others"


def test_held_out_are_as_many_of_each_class_as_its_share(tmp_path):
    """To within one image, however unequal the classes; of few images one is held out."""
    for count, name in ((70, "a"), (20, "b"), (9, "c"), (1, "d")):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("L", (2, 2)).save(tmp_path / name / f"{index}.png")
    for seed in range(3):
        held = _names(tmp_path, "test", test_fraction=0.1, seed=seed)
        counts = [sum(name.startswith(label) for name in held) for label in "abcd"]
        assert len(held) == 10 and np.abs(np.subtract(counts, [7, 2, 0.9, 0.1])).max() < 1
    assert held != _names(tmp_path, "test", test_fraction=0.1, seed=0)
    assert len(_names(tmp_path, "test", test_fraction=0.001)) == 1


def test_hidden_files_are_no_images_and_a_stray_image_does_not_decide_the_classes(folder):
    (folder / "cats" / "._0.jpg").write_bytes(b"macOS")
    (folder / "._x.jpg").write_bytes(b"macOS")
    (folder / ".thumbnails").mkdir()
    Image.new("L", (2, 2)).save(folder / ".thumbnails" / "0.png")
    assert Folder(str(folder)).class_names == ("cats", "dogs")
    Image.new("L", (2, 2)).save(folder / "stray.png")
    with pytest.raises(DataError, match=r"1 beside them, such as stray.png: move them into a class or away, or set .*classes"):
        Folder(str(folder))
    assert Folder(str(folder), classes=False, test_fraction=0.0).num_classes == 0


def test_files_that_are_not_read_are_named_by_their_endings(folder, caplog):
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (folder / "cats" / name).write_bytes(b"")
    Folder(str(folder))
    assert "left out: 2 of .heic, 1 of" in caplog.text and "1 of no ending" in caplog.text
    (folder / "linked").symlink_to(folder / "cats")
    caplog.clear()
    Folder(str(folder))
    assert "1 of linked folders" in caplog.text
    (folder / "other").mkdir()
    (folder / "other" / "a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"no images.*other files there: 1 of \.heic"):
        Folder(str(folder / "other"))


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


def _sixteen(kind):
    values = np.array([[0, 257 * 100, 257 * 200, 65535]], np.uint16)
    return Image.fromarray(values.astype(np.int32) if kind == "I" else values)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("a.png", _sixteen("I;16"), [[0], [100], [200], [255]]),
        ("a.tiff", _sixteen("I;16"), [[0], [100], [200], [255]]),
        ("a.tif", _sixteen("I"), [[0], [100], [200], [255]]),
        ("a.bmp", Image.new("RGB", (2, 1), (1, 2, 3)), [[1, 2, 3]] * 2),
        ("a.gif", Image.new("P", (2, 1), 0), [[0, 0, 0]] * 2),
        ("a.tiff", Image.new("CMYK", (2, 1), (255, 0, 0, 0)), [[0, 255, 255]] * 2),
        ("a.png", Image.new("1", (2, 1), 1), [[255]] * 2),
        ("a.png", Image.new("LA", (2, 1), (7, 128)), [[7, 7, 7, 128]] * 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_an_image_are_as_meant(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    assert load_image(tmp_path / name)[0].tolist() == expected


def test_the_first_frame_of_a_gif_and_the_upper_bits_of_deep_colour(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]
    # PIL writes no colour of 16 bits: one pixel of it by hand.
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    pixels = zlib.compress(b"\0" + struct.pack(">3H", 0x1234, 0x80FF, 0xFFFF))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert load_image(tmp_path / "b.png")[0, 0].tolist() == [0x12, 0x80, 0xFF]


def test_a_name_is_of_one_image(tmp_path):
    for name in ("a.png", "b.png", "b.bmp"):
        Image.new("L", (2, 2)).save(tmp_path / name)
    with pytest.raises(DataError, match="two images named 'b'"):
        named_files(tmp_path)


def test_values_without_a_range_and_too_many_pixels_are_refused(tmp_path, monkeypatch):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff .*floating.*save it with 8 or 16 bits"):
        load_image(tmp_path / "a.tiff")
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "b.tiff")
    with pytest.raises(DataError, match=r"outside of 16 bits"):
        load_image(tmp_path / "b.tiff")
    Image.new("L", (100, 100)).save(tmp_path / "c.png")
    monkeypatch.setattr("diffusion_jax.data.files.MOST_PIXELS", 9_999)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for read in (load_image, read_image):
        with pytest.raises(DataError, match=r"c\.png has 100x100 pixels, more than 9,999"):
            read(tmp_path / "c.png")


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "cats/none.png"}\n', "line 1: file_name 'cats/none.png' is not a file"),
        ('{"file_name": "cats/deeper/0.png", "lable": "x"}\n', "did you mean 'label'"),
        ("{nonsense\n", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("\n[1]\n", "line 2: a list, where the metadata of an image is an object"),
        (b"\x00\xff\x80\n", "cannot be read"),
        ("", "metadata.jsonl has no rows"),
        ('{"label": "x"}\n', "line 1: file_name '' is not a file"),
        ('{"file_name": ["x"]}\n', r"line 1: file_name must be a text, got \['x'\]"),
        ('{"file_name": "a\\u0000.png"}\n', "line 1: file_name .* is not a file"),
        ('{"file_name": "cats/deeper/0.png", "label": NaN}\n', "line 1: label must be a text, got nan"),
        ('{"file_name": "cats/deeper/0.png", "caption": 7}\n', "line 1: caption must be a text, got 7"),
        ('{"file_name": "cats/../../outside.png"}\n', "line 1: file_name .* leaves the folder"),
        ('{"file_name": "/etc/passwd"}\n', "line 1: file_name .* leaves the folder"),
        (
            '{"file_name": "cats/deeper/0.png", "label": "x"}\n{"file_name": "dogs/deeper/3.png"}\n',
            "1 of 2 rows have no label",
        ),
    ],
)
def test_metadata_that_does_not_fit(folder, text, message):
    (folder / "metadata.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as raised:
        Folder(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file_name,label\n../x.png,a\n", "line 2: file_name '../x.png' leaves the folder"),
        (b"file_name,label\ncats/deeper/0.png,a,b\n", "line 2: more columns than the first line names"),
        (b"name\ncats/deeper/0.png\n", "line 2: unknown field 'name'; did you mean 'file_name'"),
        (b'file_name,label\n"cats/deeper/0.png', "metadata.csv cannot be read as a table"),
        (b"\xff\xfe\x00", "metadata.csv cannot be read as a table"),
        (b"", "metadata.csv has no rows"),
        (None, "metadata.csv cannot be read as a table.*directory"),
    ],
)
def test_tables_that_do_not_fit(folder, text, message):
    (folder / "metadata.csv").mkdir() if text is None else (folder / "metadata.csv").write_bytes(text)
    with pytest.raises(DataError, match=message) as raised:
        Folder(str(folder))
    assert "\n" not in str(raised.value)
