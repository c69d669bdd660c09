"""The small classifier and the augmentation it is trained with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from diffusion_jax.data import Data
from diffusion_jax.errors import DataError
from diffusion_jax.features import agreement, classifier, train_classifier


def test_bilinear_sampling_is_scipys():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 6, 7, 2)).astype(np.float32)
    rows, columns = rng.uniform(-2, 8, (3, 5, 4)), rng.uniform(-2, 9, (3, 5, 4))
    ours = classifier.sample_bilinear(images, rows, columns)
    for index in range(3):
        for channel in range(2):
            theirs = ndimage.map_coordinates(
                images[index, ..., channel], [rows[index], columns[index]], order=1, mode="nearest"
            )
            np.testing.assert_allclose(ours[index, ..., channel], theirs, atol=1e-5)


def test_augmentation_moves_a_blob_within_its_bounds():
    images = np.zeros((400, 17, 17, 1), np.float32)
    images[:, 8, 8] = 1
    moved = classifier.shift_and_rotate(images, np.random.default_rng(0), pixels=2.0, degrees=20.0, zoom=0.0)
    yy, xx = np.mgrid[:17, :17]
    weight = moved[..., 0] / moved[..., 0].sum((1, 2), keepdims=True)
    centre = np.stack([(weight * yy).sum((1, 2)), (weight * xx).sum((1, 2))]) - 8
    assert np.abs(centre).max() < 2.5 and centre.std(1).min() > 0.8  # uniform on [-2, 2] has 1.15
    still = classifier.shift_and_rotate(images, np.random.default_rng(0), pixels=0, degrees=0, zoom=0)
    np.testing.assert_allclose(still, images, atol=1e-6)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    return images, labels.astype(np.int32)


@pytest.mark.slow  # 300 steps of training
def test_it_learns_digits_and_is_the_same_every_time(digits):
    images, labels = digits

    def train():
        return train_classifier(images[:1500], labels[:1500], 10, held_out=(images[1500:], labels[1500:]), steps=150)

    trained, again = train(), train()
    assert trained.accuracy > 0.85 and trained.num_held_out == 297
    assert trained.accuracy == agreement(trained, images[1500:], labels[1500:])
    seen, features = trained.look(images[:300])
    assert seen.shape == (300,) and features.shape == (300, 128)
    np.testing.assert_array_equal(features, again.look(images[:300])[1])


def test_bad_data(digits):
    images, labels = digits
    with pytest.raises(DataError, match="no training images"):
        train_classifier(images[:0], labels[:0], 10)
    with pytest.raises(DataError, match="5 classes"):
        train_classifier(images, labels, 5)


@pytest.mark.slow
def test_it_is_kept_beside_the_run_and_trained_again_when_damaged(tmp_path, caplog):
    source = Data({"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 8})
    with caplog.at_level("INFO"):
        first = classifier.classifier_of_data(tmp_path, source, steps=3)
        assert len(caplog.records) == 2
        second = classifier.classifier_of_data(tmp_path, source, steps=3)
        assert len(caplog.records) == 2 and second.accuracy == first.accuracy
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(first.look(images)[1], second.look(images)[1])
    (kept,) = (tmp_path / "classifier").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    third = classifier.classifier_of_data(tmp_path, source, steps=3)
    np.testing.assert_array_equal(first.look(images)[1], third.look(images)[1])
