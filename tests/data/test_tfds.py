"""A real builder, prepared and read back without TensorFlow."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data.sources import Tfds
from diffusion_jax.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")


class TinyShades(tfds.core.GeneratorBasedBuilder):
    """Twenty grey squares, light or dark."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(names=["dark", "light"]),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(20):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8), 12 * index, np.uint8)).save(file, "png")
            file.seek(0)
            yield index, {"image": file, "label": index // 10, "caption": f"shade {index}"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    TinyShades(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_read_back(data_dir):
    source = Tfds("tiny_shades", data_dir=data_dir, caption_key="caption")
    assert len(source) == 20 and source.class_names == ("dark", "light")
    for example in (source[i] for i in range(20)):
        shade = int(example["image"][0, 0, 0]) // 12
        assert (example["image"] == 12 * shade).all() and example["image"].shape == (8, 8, 1)
        assert example["label"] == shade // 10 and example["caption"] == f"shade {shade}"
    assert pickle.loads(pickle.dumps(source))[3]["caption"] == source[3]["caption"]


def test_splits_through_the_configuration(data_dir):
    source = {
        "name": "tfds", "dataset": "tiny_shades", "data_dir": data_dir, "split": "train[:75%]", "test_split": "train[75%:]"
    }  # fmt: skip
    config = {"source": source, "image_size": 8, "channels": 1, "batch_size": 4}
    train, test = data.from_config(config), data.from_config(config, split="test")
    assert (len(train), len(test)) == (15, 5)
    shades = [{int(x) for b in p.one_pass(8) for x in b["image"][:, 0, 0, 0]} for p in (train, test)]
    assert not shades[0] & shades[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "tiny_shadows"}, "no builder 'tiny_shadows'.*data_dir"),
        ({"split": "validation"}, "it has: train"),
        ({"label_key": "lable"}, "did you mean 'label'.*set label_key"),
        ({"data_dir": "/nonexistent"}, "not prepared|no builder"),
    ],
)
def test_mistakes(data_dir, fields, message):
    with pytest.raises(DataError, match=message):
        Tfds(**({"dataset": "tiny_shades", "data_dir": data_dir} | fields))


def test_missing_packages_are_named(data_dir, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "array_record" else real(name, *a))
    with pytest.raises(DataError, match=r"pip install 'diffusion_jax\[tfds\]'"):
        Tfds("tiny_shades", data_dir=data_dir)
