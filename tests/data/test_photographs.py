"""Crops of bundled photographs: real, reproducible, and held out by place."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from diffusion_jax import data
from diffusion_jax.data.sources import Photographs, bundled
from diffusion_jax.errors import ConfigError


@pytest.fixture
def only_china(monkeypatch):
    """As without scikit-image, and with one photograph."""
    monkeypatch.setattr(bundled, "paths", lambda: tuple(p for p in _PATHS if p.name == "china.jpg"))


_PATHS = bundled.paths()


def test_rectangles_are_cut_out_and_reduced_as_a_whole(only_china):
    """Each crop has the aspect of the images; the longer side decides which photographs are large enough."""
    crops = [Photographs("test", size=(20, 60))[index]["image"] for index in range(20)]
    assert {crop.shape for crop in crops} == {(20, 60, 3)} and len({crop.tobytes() for crop in crops}) == 20
    with pytest.raises(ConfigError, match="held-out part of 300x20 pixels; use a size of at most 160"):
        Photographs(size=(20, 300))
    with pytest.raises(ConfigError, match=r"'photographs': size must be .* pixels, or \(height, width\)"):
        Photographs(size=(8, 8, 3))


@pytest.mark.parametrize("shape", [(200, 300), (300, 200)])
def test_splits_do_not_meet_and_crops_come_from_all_places_and_scales(shape, monkeypatch, tmp_path):
    # A picture of its own coordinates; the last quarter of the longer side is held out.
    rows, columns = np.indices(shape) // 2
    path = tmp_path / "coordinates.png"
    Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)).save(path)
    monkeypatch.setattr(bundled, "paths", lambda: (path,))
    axis = int(np.argmax(shape))
    train, test = ([Photographs(split, size=16)[i]["image"] for i in range(200)] for split in ("train", "test"))
    assert max(crop[..., axis].max() for crop in train) <= 112 <= min(crop[..., axis].min() for crop in test)
    assert min(crop[..., axis].min() for crop in train) < 10 and max(crop[..., axis].max() for crop in test) > 140
    widths = [2 * (int(crop[0, -1, 1]) - int(crop[0, 0, 1])) for crop in train]
    assert min(widths) < 20 and max(widths) > 52  # from 16 to 64 pixels


def test_photographs_are_those_of_the_packages(only_china):
    assert bundled._region(_PATHS[0], "train").shape == (427, 480, 3)
    whole = np.concatenate([bundled._region(_PATHS[0], split) for split in ("train", "test")], 1)
    np.testing.assert_array_equal(whole, load_sample_image("china.jpg"))


def test_a_crop_is_a_function_of_its_index():
    source = Photographs(size=16, num_examples=50)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(source[31]["image"], again[31]["image"])
    longer = Photographs(size=16, num_examples=80)
    np.testing.assert_array_equal(source[31]["image"], longer[31]["image"])
    assert len({source[i]["image"].tobytes() for i in range(50)}) == 50
    assert (source[3]["image"] != Photographs(split="test", size=16)[3]["image"]).any()
    assert (source[3]["image"] != Photographs(size=16, seed=1)[3]["image"]).any()


def test_photographs_are_in_colour_and_reach_a_batch():
    for path in _PATHS:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), float)
        assert np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 5, path.name
    config = {"source": {"name": "photographs", "size": 24, "num_examples": 20}, "image_size": 24, "batch_size": 4}
    assert data.from_config(config).batch(0)["image"].shape == (4, 24, 24, 3)


def test_bad_fields(only_china):
    with pytest.raises(ConfigError, match="at most 160"):
        Photographs(size=200)
    with pytest.raises(ConfigError, match="split: unknown 'tset'; did you mean 'test'"):
        Photographs(split="tset")
    with pytest.raises(IndexError):
        Photographs(num_examples=3)[3]
