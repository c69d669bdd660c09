"""Folders of samples: what is there, what is damaged, what does not belong."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.identity import differences
from diffusion_jax.inference import SampleFolder
from diffusion_jax.spec import Spec

SPEC = Spec.image((4, 5), 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, *SPEC.shape), np.uint8)


def _fill(path, format: str, indices, num: int = 12, labels=None) -> None:
    with SampleFolder(path, {"seed": 0}, format, SPEC) as folder:
        for part in np.array_split(np.asarray(indices), 3):
            if len(part):
                folder.add(part, IMAGES[part])
        if labels is not None:
            folder.finish(num, labels)


def _missing(path, format: str, num: int = 12) -> list[int]:
    with SampleFolder(path, {"seed": 0}, format, SPEC) as folder:
        return folder.missing(num)


def test_png_folder_is_continued_and_repaired(tmp_path):
    _fill(tmp_path, "png", [0, 1, 2, 5])
    (tmp_path / "000001.png").write_bytes(b"\x89PNG broken")
    whole = (tmp_path / "000002.png").read_bytes()
    (tmp_path / "000002.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(IMAGES[0][:2]).save(tmp_path / "000005.png")  # another size
    assert _missing(tmp_path, "png") == [1, 2, *range(3, 12)]
    _fill(tmp_path, "png", [1, 2, *range(3, 12)], labels=np.arange(12) % 3)
    for index in range(12):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{index:06d}.png")), IMAGES[index])
    assert json.loads((tmp_path / "labels.json").read_text()) == (np.arange(12) % 3).tolist()
    assert (tmp_path / "grid.png").exists() and not list(tmp_path.glob(".*"))


def test_npz_is_joined_from_parts_in_order_continued_and_repaired(tmp_path):
    _fill(tmp_path, "npz", [0, 1, 2, 7, 8, 9])
    assert not (tmp_path / "samples.npz").exists()
    assert _missing(tmp_path, "npz") == [3, 4, 5, 6, 10, 11]
    first = sorted((tmp_path / "parts").iterdir())[0]
    first.write_bytes(first.read_bytes()[:-30])
    missing = _missing(tmp_path, "npz")
    assert missing[0] == 0 and set(missing) >= {3, 4, 5, 6, 10, 11}
    _fill(tmp_path, "npz", missing, labels=np.arange(12))
    with np.load(tmp_path / "samples.npz") as whole:
        np.testing.assert_array_equal(whole["arr_0"], IMAGES)
        np.testing.assert_array_equal(whole["arr_1"], np.arange(12))
    assert not (tmp_path / "parts").exists() or not list((tmp_path / "parts").iterdir())


def test_a_finished_npz_can_grow_(tmp_path):
    _fill(tmp_path, "npz", range(5), 5, np.arange(5))
    assert _missing(tmp_path, "npz", 5) == [] and _missing(tmp_path, "npz") == list(range(5, 12))
    _fill(tmp_path, "npz", range(5, 12), 12, np.arange(12))
    with np.load(tmp_path / "samples.npz") as whole:
        np.testing.assert_array_equal(whole["arr_0"], IMAGES)


def test_a_bit_that_flipped_in_a_large_npz_is_found(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    with SampleFolder(tmp_path, {}, "npz", Spec.image(128, 3)) as folder:
        folder.add(np.arange(3), images)
        folder.finish(3)
        assert folder.missing(3) == []
        content = bytearray((tmp_path / "samples.npz").read_bytes())
        content[100_000] ^= 1
        (tmp_path / "samples.npz").write_bytes(content)
        assert folder.missing(3) == [0, 1, 2]


def test_grey_images_come_back_with_one_channel(tmp_path):
    grey = IMAGES[:2, ..., :1]
    with SampleFolder(tmp_path, {}, "png", Spec.image((4, 5), 1)) as folder:
        folder.add(np.arange(2), grey)
        folder.finish(2)
        assert folder.missing(2) == []
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000001.png")), grey[1, ..., 0])


def test_other_settings_are_refused_and_named(tmp_path):
    SampleFolder(tmp_path, {"seed": 0, "stages": [{"steps": 10}]}, "png", SPEC).close()
    before = (tmp_path / "samples.json").read_text()
    with pytest.raises(ConfigError, match=r"seed was 0, now 1; stages\[0\].steps was 10, now 20"):
        SampleFolder(tmp_path, {"seed": 1, "stages": [{"steps": 20}]}, "png", SPEC)
    with pytest.raises(ConfigError, match="format was 'png', now 'npz'"):
        SampleFolder(tmp_path, {"seed": 0, "stages": [{"steps": 10}]}, "npz", SPEC)
    assert (tmp_path / "samples.json").read_text() == before
    with pytest.raises(ConfigError, match="did you mean 'png'"):
        SampleFolder(tmp_path / "new", {}, "pgn", SPEC)
    assert differences([1, 2], [1]) == [" was [1, 2], now [1]"]


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with SampleFolder(tmp_path, {}, "png", SPEC) as folder:
        monkeypatch.setattr("diffusion_jax.inference.samples.write_image", full)
        folder.add(np.arange(2), IMAGES[:2])
        with pytest.raises(DataError, match="No space left on device"):
            folder.finish(2)


def test_what_is_no_image_is_written_as_numbers(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 7, 2)).astype(np.float32)
    spec = Spec((7, 2), "points")
    for part in (slice(0, 2), slice(2, 5)):
        with SampleFolder(tmp_path, {}, None, spec) as folder:
            folder.add(np.arange(5)[part], values[part])
            assert folder.finish(5) == tmp_path
    with np.load(tmp_path / "samples.npz") as whole:
        np.testing.assert_array_equal(whole["arr_0"], values)
    with pytest.raises(ConfigError, match="format of points samples: unknown 'png'"):
        SampleFolder(tmp_path / "new", {}, "png", spec)
