"""Resizing and cropping against block means and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusion_jax.data.files import by_class, tile
from diffusion_jax.data.transforms import RESIZES, Crop, Fit, cover, resize, to_channels
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


@given(st.tuples(*[st.integers(1, 99)] * 4), st.sampled_from(RESIZES))
def test_a_rectangle_is_covered_and_touched(sides, method):
    """Both sides reach the size, one exactly, and the aspect is kept to a pixel."""
    shape, size = sides[:2], sides[2:]
    covering = cover(shape, size)
    assert all(np.greater_equal(covering, size)) and any(np.equal(covering, size))
    exact = max(size[0] / shape[0], size[1] / shape[1])
    assert max(abs(side - exact * was) for side, was in zip(covering, shape, strict=True)) <= 1
    fitted = Fit(size, 1, method)(noise(*shape, 1)).shape[:2]
    assert all(np.greater_equal(fitted, size)) and any(np.equal(fitted, size))


def test_rectangles_are_cropped_and_zoomed_whole():
    image, rng = noise(40, 60, 1), np.random.default_rng(0)
    found = {Crop((16, 30), "random")(image, rng).tobytes() for _ in range(300)}
    places = {image[top : top + 16, left : left + 30].tobytes() for top in range(25) for left in range(31)}
    assert len(found) > 200 and found <= places
    zoom = Crop((16, 24), "zoom", flip=True)
    assert zoom.source_size == (20, 30) and Fit(zoom.source_size, 1)(image).shape == (20, 30, 1)
    assert {zoom(image, rng).shape for _ in range(30)} == {(16, 24, 1)} and zoom(image, None).shape == (16, 24, 1)
    # The middle of an image that is wide enough: nothing but its sides is lost.
    np.testing.assert_array_equal(Crop((40, 20))(image, None), image[:, 20:40])


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
    np.testing.assert_array_equal(Crop((4, 10), "none")(image, None), image)


def _ramp() -> np.ndarray:
    """Columns from 0 to 250 over 40 pixels: a crop's range tells how much of the width it shows."""
    return np.broadcast_to(np.linspace(0, 250, 40).astype(np.uint8)[None, :, None], (40, 40, 1))


def test_zoomed_crops_show_80_to_100_percent_of_the_short_side():
    crop, rng = Crop(32, "zoom"), np.random.default_rng(0)
    assert crop.source_size == (40, 40)
    crops = np.stack([crop(_ramp(), rng) for _ in range(300)])
    assert crops.shape == (300, 32, 32, 1)
    shares = (crops[:, 0, -1, 0].astype(float) - crops[:, 0, 0, 0]) / 250
    assert 0.76 < shares.min() < 0.82 and shares.max() > 0.97
    assert 0.87 < shares.mean() < 0.93  # sides from 32 to 40 are equally likely
    assert crops[:, 0, 0, 0].max() > 35  # and the crop is not always on the left


def test_held_out_images_are_shown_whole():
    seen = Crop(32, "zoom", flip=True)(_ramp(), None)
    assert seen.shape == (32, 32, 1) and seen[0, 0, 0] < 8 and seen[0, -1, 0] > 242


def test_a_mask_beside_the_image_is_zoomed_like_it():
    image = np.concatenate([np.repeat(_ramp(), 3, -1), np.where(_ramp() > 125, 255, 0).astype(np.uint8)], -1)
    found = Crop(32, "zoom")(image, np.random.default_rng(1))
    middle = found[32 // 2].astype(int)
    np.testing.assert_array_equal(middle[:, 0], middle[:, 2])
    sure = np.abs(middle[:, 0] - 125) > 25
    np.testing.assert_array_equal(middle[sure, 3] > 127, middle[sure, 0] > 125)


def test_images_come_with_room_to_zoom():
    wide = np.zeros((50, 90, 3), np.uint8)
    assert Fit(Crop(32, "zoom").source_size, 3)(wide).shape[:2] == (40, 72)
    assert Crop(32, "zoom")(Fit(40, 3)(wide), np.random.default_rng(0)).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        ([0, 1, 2] * 4, [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]]),
        ([7, 3] * 3 + [7], [[3, 3, 3, None], [7, 7, 7, 7]]),
        ([0] * 5 + [1] * 5 + [2] * 3, [[0] * 5, [1] * 5, [2] * 3 + [None] * 2]),
        ([0, 0, 0, 0], None),
        (list(range(9)), None),
        ([0, 0, 0, 0, 0, 1, 2], None),
    ],
)
def test_grids_have_a_class_to_a_row(labels, rows):
    images = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)
    arranged, columns = by_class(images, np.array(labels))
    if rows is None:
        assert columns is None and arranged is images
        return
    found = tile(arranged, columns, gap=0)[..., 0].tolist()
    assert found == [[255 if label is None else label for label in row] for row in rows]
    assert by_class(images, None)[0] is images


def test_a_long_and_narrow_image_is_not_blown_up():
    with pytest.raises(DataError, match=r"an image of 2x200000 would be 2048x204800000 pixels to cover 2048x2048"):
        Fit(2048, 1)(np.zeros((200_000, 2, 1), np.uint8))
