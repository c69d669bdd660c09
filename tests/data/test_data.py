"""A run's data: each split is opened once, each image read once for all who ask, as far as memory reaches."""

from __future__ import annotations

import collections
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.spec import Spec

NUM = 80


@pytest.fixture
def config(tmp_path):
    """A folder of images of many sizes, in classes."""
    rng = np.random.default_rng(0)
    for number in range(NUM):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        height, width = rng.integers(12, 30, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    source = {"name": "folder", "path": str(tmp_path), "test_fraction": 0.25}
    return {"source": source, "image_size": 8, "batch_size": 16, "crop": "random", "flip": True}


@pytest.fixture
def decoded(monkeypatch):
    """How often each file's pixels were really decoded."""
    counts, load = collections.Counter(), ImageFile.ImageFile.load

    def counting(image):
        if image.filename and image.tile:
            counts[Path(image.filename).name] += 1
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    return counts


def _everything(run):
    """What an evaluation reads: passes over both splits, for several purposes, and some batches."""
    found = []
    for split in ("train", "test"):
        for fields in ({}, {"batch_size": 4}, {"degradation": "inpaint", "seed": 3}):
            found += [batch["image"] for batch in run.pipeline(split, **fields).one_pass(7)]
        found += [run.pipeline(split, host=1, hosts=2).batch(step)["image"] for step in range(12)]
    return found


def test_an_image_is_decoded_twice_at_most_verification_included(config, decoded):
    once = _everything(data.Data(config))
    assert len(decoded) == NUM and set(decoded.values()) == {2}
    decoded.clear()
    anew = _everything(data.Data({**config, "cache": 0}))
    assert max(decoded.values()) > 4
    for image, same in zip(once, anew, strict=True):
        np.testing.assert_array_equal(image, same)


def test_splits_are_opened_when_they_are_needed_and_shared(config, decoded):
    run = data.Data(config, seed=5)
    assert run.spec == Spec((8, 8, 3)) and not decoded
    test = run.pipeline("test")
    assert len(decoded) == len(test) and test.seed == 5
    again = run.pipeline("test", batch_size=4)
    assert again.source is test.source is run.source("test") and again._fitted is test._fitted
    assert run.pipeline("test", crop="zoom")._fitted is not test._fitted
    assert run.pipeline().source is not test.source and len(run.pipeline()) + len(test) == NUM
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        run.pipeline(batchsize=3)


def test_what_does_not_fit_into_memory_is_read_anew_and_said_once(config, decoded, caplog):
    sizes = 60 * 8 * 12 * 3  # about 60 images of 8 pixels by up to 20
    run = data.Data({**config, "cache": sizes / 2**30})
    with caplog.at_level(logging.WARNING):
        passes = [
            [batch["image"] for batch in run.pipeline(split).one_pass(9)] for _ in range(3) for split in ("train", "test")
        ]
    assert len([record for record in caplog.records if "data.cache" in record.message]) == 1
    assert 2 in decoded.values() and 4 in decoded.values()
    for first, later in zip(passes[0], passes[4], strict=True):
        np.testing.assert_array_equal(first, later)
    with pytest.raises(ConfigError, match="cache must be a number at least 0"):
        data.Data({**config, "cache": -1})


def test_threads_share_an_image(config, decoded):
    pipeline = data.from_config({**config, "source": {**config["source"], "verify": False}})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: pipeline._fitted[n % len(pipeline)], range(4 * len(pipeline))))
    assert set(decoded.values()) == {1}


def test_numeric_leaves_out_captions():
    batch = {"image": np.zeros((2, 3), np.uint8), "caption": np.array(["a", None], object), "label": [1, 2]}
    assert {name: value.dtype.kind for name, value in data.numeric(batch).items()} == {"image": "u", "label": "i"}
