"""Labels by rule, and low-resolution images from data and from files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.inference import Cascade, Stage
from diffusion_jax.inference.requests import Requests, label_rule, low_res_from, requests_of
from diffusion_jax.systems import Sampling
from tests.tiny_systems import make_super_resolution


@pytest.mark.parametrize(
    ("spec", "num", "labels"),
    [
        ("all", None, [0, 1, 2, 0, 1, 2, 0]),
        ("2", None, [2, 2, 2, 2, 2, 2, 2]),
        ("2, 0", None, [2, 0, 2, 0, 2, 0, 2]),
        ("2-per-class", 6, [0, 0, 1, 1, 2, 2, 0]),
    ],
)
def test_labels(spec, num, labels):
    rule, wanted = label_rule(spec, 3)
    assert wanted == num and rule(np.arange(7)).tolist() == labels
    assert rule(np.array([4])).tolist() == [labels[4]]


@pytest.mark.parametrize(
    ("spec", "classes", "message"),
    [
        ("3", 3, "label 3 is out of range: the model has 3 classes, 0 to 2"),
        ("0,-1", 3, "label -1 is out of range"),
        ("all", 0, "unconditional"),
        ("cats", 3, "cannot read labels 'cats'"),
        ("0-per-class", 3, "asks for nothing"),
    ],
)
def test_bad_labels(spec, classes, message):
    with pytest.raises(ConfigError, match=message):
        label_rule(spec, classes)


def test_requests_of_data_is_pils_box_resize_rounded():
    pipeline = data.from_config({"source": "digits", "image_size": 16, "channels": 1, "batch_size": 4, "resize": "bicubic"})
    columns = requests_of(make_super_resolution(), pipeline, 5)
    (batch,) = pipeline.one_pass(5, limit=5)
    assert columns["label"].tolist() == batch["label"].tolist()
    for small, image in zip(columns["low_res"], batch["image"], strict=True):
        exact = np.asarray(Image.fromarray(image[..., 0].astype(np.float32)).resize((8, 8), Image.Resampling.BOX))
        assert np.abs(small[..., 0] - exact).max() <= 0.5 + 1e-4


def test_rows_repeat_and_a_rule_goes_before_a_column():
    columns = {"low_res": np.arange(3), "label": np.array([7, 8, 9])}
    assert Requests(columns)(np.array([3, 4]))["label"].tolist() == [7, 8]
    assert Requests(columns, label_rule("1", 3)[0])(np.array([3, 4]))["label"].tolist() == [1, 1]
    assert Requests(columns).labels(4).tolist() == [7, 8, 9, 7] and Requests({}).labels(4) is None


def test_labels_that_come_with_images_are_checked():
    cascade = Cascade([Stage(make_super_resolution(), Sampling())])
    low_res = np.zeros((3, 8, 8, 1), np.uint8)
    Requests({"low_res": low_res, "label": np.array([0, 1, 4])}).check(cascade, 2)
    with pytest.raises(ConfigError, match="label 4 is out of range"):
        Requests({"low_res": low_res, "label": np.array([0, 1, 4])}).check(cascade, 3)


def test_low_res_from_an_npz_and_from_a_folder(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "in.npz", arr_0=images, arr_1=np.arange(3))
    columns = low_res_from(str(tmp_path / "in.npz"), (8, 8, 1))
    np.testing.assert_array_equal(columns["low_res"], images)
    assert columns["label"].tolist() == [0, 1, 2]
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "folder" / f"{index}.png")
    np.testing.assert_array_equal(low_res_from(str(tmp_path / "folder"), (8, 8, 1))["low_res"], images)


def test_bad_low_res(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        low_res_from(str(tmp_path / "nothing"), (8, 8, 1))
    np.savez(tmp_path / "in.npz", arr_0=np.zeros((3, 4, 4, 1), np.uint8))
    with pytest.raises(DataError, match=r"the model takes uint8 \[N, 8, 8, 1\]"):
        low_res_from(str(tmp_path / "in.npz"), (8, 8, 1))
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match="cannot read"):
        low_res_from(str(tmp_path / "text.npz"), (8, 8, 1))
