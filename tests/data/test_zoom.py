"""Crops of zoomed images, as ADM's classifiers are trained: how much of an image they show, and where."""

from __future__ import annotations

import numpy as np

from diffusion_jax.data.transforms import Crop, Fit

SIZE = 32


def _ramp() -> np.ndarray:
    """Columns from 0 to 250 over 40 pixels: a crop's range tells how much of the width it shows."""
    return np.broadcast_to(np.linspace(0, 250, 40).astype(np.uint8)[None, :, None], (40, 40, 1))


def test_zoomed_crops_show_80_to_100_percent_of_the_short_side():
    crop, rng = Crop(SIZE, "zoom"), np.random.default_rng(0)
    assert crop.source_size == (40, 40)
    crops = np.stack([crop(_ramp(), rng) for _ in range(300)])
    assert crops.shape == (300, SIZE, SIZE, 1)
    shares = (crops[:, 0, -1, 0].astype(float) - crops[:, 0, 0, 0]) / 250
    assert 0.76 < shares.min() < 0.82 and shares.max() > 0.97
    assert 0.87 < shares.mean() < 0.93  # sides from 32 to 40 are equally likely
    assert crops[:, 0, 0, 0].max() > 35  # and the crop is not always on the left


def test_held_out_images_are_shown_whole():
    seen = Crop(SIZE, "zoom", flip=True)(_ramp(), None)
    assert seen.shape == (SIZE, SIZE, 1) and seen[0, 0, 0] < 8 and seen[0, -1, 0] > 242


def test_a_mask_beside_the_image_is_zoomed_like_it():
    image = np.concatenate([np.repeat(_ramp(), 3, -1), np.where(_ramp() > 125, 255, 0).astype(np.uint8)], -1)
    found = Crop(SIZE, "zoom")(image, np.random.default_rng(1))
    middle = found[SIZE // 2].astype(int)
    np.testing.assert_array_equal(middle[:, 0], middle[:, 2])
    sure = np.abs(middle[:, 0] - 125) > 25
    np.testing.assert_array_equal(middle[sure, 3] > 127, middle[sure, 0] > 125)


def test_images_come_with_room_to_zoom():
    wide = np.zeros((50, 90, 3), np.uint8)
    assert Fit(Crop(SIZE, "zoom").source_size, 3)(wide).shape[:2] == (40, 72)
    assert Crop(SIZE, "zoom")(Fit(40, 3)(wide), np.random.default_rng(0)).shape == (SIZE, SIZE, 3)
