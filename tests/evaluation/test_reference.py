"""The real side of an evaluation: statistics that are kept belong to the data that are there, and small ones are said."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.errors import DataError
from diffusion_jax.evaluation.reference import from_data, from_file, statistics_of
from diffusion_jax.metrics.statistics_file import write_statistics
from tests.data.test_record import CHANGES


class Means:
    """Features that need no network: means of an image's quarters."""

    name, dims = "means", {"pool": 4}

    def identity(self):
        return {"network": "means", "preprocessing": "none", "checksum": "0"}

    def __call__(self, images):
        quarters = images.reshape(len(images), 2, 2, 2, 2, -1).mean((2, 4, 5))
        return {"pool": quarters.reshape(len(images), 4).astype(np.float32)}


@pytest.fixture
def config(tmp_path):
    """The configuration of twenty images in two classes."""
    for index in range(20):
        path = tmp_path / "images" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 50).save(path)
    source = {"name": "folder", "path": str(tmp_path / "images"), "test_fraction": 0.2}
    return {"source": source, "image_size": 4, "channels": 1, "batch_size": 4}


@pytest.mark.parametrize(("alter", "message"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_kept_statistics_of_other_data_are_refused(alter, message, config, tmp_path):
    first = from_data(data.Data(config), Means(), tmp_path / "reference")
    (kept,) = (tmp_path / "reference").glob("*.npz")
    written = kept.stat().st_mtime_ns
    again = from_data(data.Data(config), Means(), tmp_path / "reference")
    np.testing.assert_array_equal(first.statistics.mean, again.statistics.mean)
    alter(tmp_path / "images")
    with pytest.raises(DataError, match=r"kept in .*npz were made from other data: .*remove the file") as raised:
        from_data(data.Data(config), Means(), tmp_path / "reference")
    assert "\n" not in str(raised.value) and kept.stat().st_mtime_ns == written
    kept.unlink()
    from_data(data.Data(config), Means(), tmp_path / "reference")


def test_a_file_of_other_data_is_said(config, tmp_path, caplog):
    run = data.Data(config)
    write_statistics(tmp_path / "a.npz", statistics_of(run.pipeline("train"), Means(), "train"))
    from_file(str(tmp_path / "a.npz"), Means(), run.pipeline("test"))
    assert not caplog.records
    (tmp_path / "images" / "cat" / "0.png").unlink()
    from_file(str(tmp_path / "a.npz"), Means(), data.Data(config).pipeline("test"))
    assert "other data than the run's: class 'cat' of 10 images has 9" in caplog.text


def test_a_damaged_file_is_made_again(config, tmp_path, caplog):
    from_data(data.Data(config), Means(), tmp_path / "reference")
    (kept,) = (tmp_path / "reference").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:-100])
    from_data(data.Data(config), Means(), tmp_path / "reference")
    assert "computing it again" in caplog.text


def test_a_small_reference_is_said(config, caplog):
    reference = from_data(data.Data(config), Means())
    reference.warn_if_few(200)
    assert "The distance of held-out images is that of 4 images, and the samples' that of 200" in caplog.text
    caplog.clear()
    reference.warn_if_few(4)
    assert not caplog.records
    small = from_data(data.Data({**config, "source": {**config["source"], "test_fraction": 0.85}}), Means())
    small.warn_if_few(10)
    assert "3 training images of folder, a reference of 3 samples with 4 features" in caplog.text
