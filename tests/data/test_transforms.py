"""Resizing and cropping against block means and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusion_jax.data.transforms import Crop, Fit, resize, to_channels
from diffusion_jax.errors import DataError


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@given(st.integers(2, 5), st.integers(1, 3), st.sampled_from([1, 3]))
def test_area_is_the_mean_of_blocks(factor, size, channels):
    image = noise(4 * size * factor, 4 * size * factor, channels)
    blocks = image.reshape(4 * size, factor, 4 * size, factor, channels).mean((1, 3))
    assert np.abs(Fit(4 * size, channels)(image) - blocks).max() <= 1.01  # Pillow rounds after each axis


def test_bicubic_is_pillows():
    image = noise(20, 30, 3)
    expected = np.asarray(Image.fromarray(image).resize((12, 8), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(image, (8, 12), "bicubic"), expected)


def test_the_short_side_fits_and_adm_halves_first():
    image = noise(70, 90, 3)
    assert Fit(16, 3, "area")(image).shape == (16, 21, 3)
    halved = image[:70, :90].reshape(35, 2, 45, 2, 3).mean((1, 3))
    expected = np.asarray(Image.fromarray(np.round(halved).astype(np.uint8)).resize((21, 16), Image.Resampling.BICUBIC))
    # 70 -> 35 by boxes (35 is at least 2 x 16: once more, to 17), then bicubic.
    result = Fit(16, 3, "adm")(image)
    assert result.shape == (16, 21, 3) and np.abs(result.astype(int) - expected).mean() < 20


def test_padding_is_black():
    padded = Fit(32, 1, pad=2)(np.full((28, 28, 1), 200, np.uint8))
    assert padded.shape == (32, 32, 1) and padded[2:-2, 2:-2].min() == 200
    assert padded.sum() == 28 * 28 * 200


def test_channels():
    image = noise(3, 4, 3)
    np.testing.assert_array_equal(to_channels(image, 3), image)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_channels(image, 1)[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(to_channels(image[..., :1], 3), image[..., :1].repeat(3, -1))
    clear = np.dstack([image, np.zeros((3, 4), np.uint8)])
    assert (to_channels(clear, 3) == 255).all()  # transparent: the white behind it
    with pytest.raises(DataError, match="channels"):
        to_channels(noise(3, 4, 3), 2)


def test_crops():
    image = np.arange(40, dtype=np.uint8).reshape(4, 10, 1)
    np.testing.assert_array_equal(Crop(4)(image, None)[0, :, 0], [3, 4, 5, 6])
    rng = np.random.default_rng(0)
    lefts = {int(Crop(4, "random")(image, rng)[0, 0, 0]) for _ in range(200)}
    assert lefts == set(range(7))
    np.testing.assert_array_equal(Crop(4, "random", flip=True)(image, None), Crop(4)(image, None))
    with pytest.raises(DataError, match="an image of 10x4 is not one of 4x4"):
        Crop(4, "none")(image, None)
