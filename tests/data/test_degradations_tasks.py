"""Masks, image-to-image tasks, and their place in the pipeline."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from diffusion_jax import data
from diffusion_jax.data.degradations import TASKS, Colorize, Inpaint, Jpeg, Mixture, Uncrop, compress, masks, with_mask
from diffusion_jax.data.sources import Photographs
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.registry import build


@pytest.fixture(scope="module")
def image():
    return Photographs(size=64)[0]["image"]


def test_boxes_cover_what_they_should():
    rng = np.random.default_rng(0)
    shares = [masks.boxes((40, 60), rng).mean() for _ in range(300)]
    assert 0.1 <= min(shares) < 0.13 and 0.36 < max(shares) <= 0.4
    single = masks.boxes((64, 64), rng, count=(1, 1))
    rows, columns = np.flatnonzero(single.any(1)), np.flatnonzero(single.any(0))
    assert single[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one rectangle, without holes
    with pytest.raises(ConfigError, match="cover must be"):
        masks.boxes((8, 8), rng, cover=(0.5, 1.5))
    with pytest.raises(ConfigError, match="no 1 to 1 boxes cover"):
        masks.boxes((2, 2), rng, count=(1, 1), cover=(0.3, 0.4))


def test_strokes_are_seeded_scale_with_the_image_and_are_really_flipped():
    first, again = (masks.free_form((64, 64), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    draws = [masks.free_form((48, 48), np.random.default_rng(i)) for i in range(400)]
    large = [masks.free_form((192, 192), np.random.default_rng(i)) for i in range(100)]
    assert np.mean(large) == pytest.approx(np.mean(draws), rel=0.15) and 0.1 < np.mean(draws) < 0.5
    # A stroke drifts to the right: only flips make the left as likely as the right.
    mean = np.mean(draws, 0)
    left, right = mean[:, :24].mean(), mean[:, 24:].mean()
    assert abs(left - right) < 0.12 * mean.mean()
    wide = np.mean([masks.free_form((24, 96), np.random.default_rng(i)) for i in range(200)], 0)
    assert wide[:, 36:60].mean() > 0.5 * wide.mean()  # strokes begin anywhere


def test_strokes_turn_to_and_fro_by_the_published_angles_and_lengths():
    rng, turns, lengths = np.random.default_rng(0), {"up": [], "down": []}, []
    for _ in range(2000):
        corners = np.array(masks._stroke((500, 900), rng, 4, 10.0))
        assert (corners >= 0).all() and (corners <= (900, 500)).all()
        inside = ((corners > 0) & (corners < (900, 500))).all()  # a step that leaves the image is cut short
        for number, (x, y) in enumerate(np.diff(corners, axis=0)):
            if inside and math.hypot(x, y) > 1e-3:
                turns["down" if number % 2 else "up"].append(math.atan2(y, x))
            if inside:
                lengths.append(math.hypot(x, y))
    for sign, angles in ((-1, turns["up"]), (1, turns["down"])):
        mirrored = sign * np.array(angles)
        assert np.mean(mirrored) == pytest.approx(2 * math.pi / 5, abs=0.01)
        assert 0.95 < (mirrored.max() - mirrored.min()) / (4 * math.pi / 15) <= 1
    # Normal with mean 10 and deviation 5, where what lies beyond 0 and 20 is put there.
    assert np.mean(lengths) == pytest.approx(10, abs=0.2) and max(lengths) == pytest.approx(20)
    assert np.var(lengths) == pytest.approx(25 * stats.norm.expect(lambda z: np.clip(z, -2, 2) ** 2), rel=0.04)


def test_uncropping_leaves_half_and_the_centre_a_quarter():
    rng = np.random.default_rng(0)
    for side, rows, columns in (("left", 32, 8), ("right", 32, 40), ("top", 8, 32), ("bottom", 40, 32)):
        mask = masks.uncrop((48, 48), side)
        assert mask.mean() == 0.5 and mask[rows, columns]
    shapes = set()
    for _ in range(50):
        known = ~masks.uncrop((48, 48), "all", rng)
        rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
        assert known[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and abs(known.mean() - 0.5) < 0.02
        shapes.add((len(rows), rows[0], columns[0]))
    assert len(shapes) > 30
    middle = masks.uncrop((48, 64), "all")  # without a generator, in the middle
    assert abs(middle.mean() - 0.5) < 0.02 and not middle[24, 32] and middle[0].all() and middle[:, 0].all()
    assert abs(masks.uncrop((64, 64), "all", share=0.2).mean() - 0.2) < 0.02
    centre = masks.centre((64, 64))
    assert centre.mean() == 0.25 and centre[16:48, 16:48].all()
    with pytest.raises(ConfigError, match="did you mean 'left'"):
        masks.uncrop((8, 8), "lefft")


@pytest.mark.parametrize("task", TASKS)
def test_a_task_gives_what_is_known_and_says_what_is_missing(task, image):
    made = build("degradation", task)(image, np.random.default_rng(1))
    assert made["degraded"].shape == image.shape and made["degraded"].dtype == np.uint8
    assert made["missing"].shape == (64, 64, 1) and set(np.unique(made["missing"])) <= {0, 255}
    assert TASKS[made["task"]] == task
    if task in ("inpaint", "uncrop"):
        known = made["missing"][..., 0] == 0
        assert 0 < known.mean() < 1
        np.testing.assert_array_equal(made["degraded"][known], image[known])
        assert (made["degraded"][~known] == 128).all()
    else:
        assert not made["missing"].any() and (made["degraded"] != image).any()


def test_colour_is_taken_away_and_luma_stays(image):
    grey = Colorize()(image, np.random.default_rng(0))["degraded"]
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - luma[..., None]).max() <= 1 and (grey[..., 0] == grey[..., 2]).all()


def test_free_form_masks_have_their_share(image):
    # A box's rows are all of one run; strokes are not. With free_form 0 there are boxes only.
    rng = np.random.default_rng(0)
    cover = [Inpaint(free_form=0.0)(image, rng)["missing"].mean() / 255 for _ in range(50)]
    assert min(cover) >= 0.1 and max(cover) <= 0.4
    centre = Inpaint(centre=True)(image, rng)["missing"]
    assert (centre[16:48, 16:48] == 255).all() and centre.mean() / 255 == 0.25
    with pytest.raises(ConfigError, match=r"free_form must be a number in \[0, 1\]"):
        build("degradation", {"name": "inpaint", "free_form": 1.2})
    with pytest.raises(ConfigError, match="side: unknown 'up'"):
        Uncrop(("up",))


def test_sides_and_qualities_are_those_asked_for(image):
    rng = np.random.default_rng(0)
    left = np.array([Uncrop(("left", "bottom"))(image, rng)["missing"][0, 0, 0] == 255 for _ in range(100)])
    assert 30 < left.sum() < 70
    np.testing.assert_array_equal(Jpeg((71, 71))(image, rng)["degraded"], compress(image, 71))


@pytest.mark.parametrize("task", [*TASKS, "mixture"])
def test_tasks_take_rectangles(task):
    image = Photographs(size=(20, 44))[0]["image"]
    for seed in range(8):
        made = build("degradation", task)(image, np.random.default_rng(seed))
        assert made["degraded"].shape == (20, 44, 3) and made["missing"].shape == (20, 44, 1)
        np.testing.assert_array_equal(made["degraded"][made["missing"][..., 0] == 255], 128)


def test_masks_of_ones_own(image):
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20] = 255
    for same in (mask, mask > 0, mask[..., None], np.where(mask > 0, 128, 127).astype(np.uint8)):
        assert (with_mask(image, same)["missing"][..., 0] == mask).all()
    with pytest.raises(DataError, match="a mask of 32x64 for an image of 64x64: mask and image must have one size"):
        with_mask(image, mask[:, :32])
    with pytest.raises(DataError, match="marks nothing"):
        with_mask(image, mask * 0)


def test_a_mixture_has_all_tasks_alike():
    rng, image = np.random.default_rng(0), np.zeros((8, 8, 3), np.uint8)
    tasks = np.bincount([Mixture()(image, rng)["task"] for _ in range(2000)], minlength=4)
    assert (abs(tasks - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)).all()
    assert Mixture(("inpaint", {"name": "jpeg", "quality": (5, 5)}))(image, rng)["task"] in (1, 3)
    with pytest.raises(ConfigError, match="unknown degradation 'colourize'; did you mean 'colorize'"):
        Mixture(("colourize",))
    some = Mixture(("inpaint", {"name": "jpeg", "quality": (5, 5)}))
    assert some.only("inpaint") == "inpaint" and some.only("jpeg") == {"name": "jpeg", "quality": (5, 5)}
    with pytest.raises(ConfigError, match="task: unknown 'uncrop'"):
        some.only("uncrop")


def _pipeline(**fields):
    source = {"name": "photographs", "size": 16, "num_examples": 6}
    return data.from_config({"source": source, "image_size": 16, "batch_size": 3, "degradation": "mixture", **fields}, seed=5)


def test_the_pipeline_degrades_by_seed_example_and_epoch():
    first, again = _pipeline(), _pipeline()
    for key, value in first.batch(1).items():
        np.testing.assert_array_equal(value, again.batch(1)[key])
    # Two epochs show the same images, degraded in another way.
    epochs = [[first.batch(2 * epoch + i) for i in range(2)] for epoch in range(2)]
    images = [np.concatenate([batch["image"] for batch in epoch]) for epoch in epochs]
    order = [sorted(range(6), key=lambda i, each=each: each[i].tobytes()) for each in images]
    np.testing.assert_array_equal(images[0][order[0]], images[1][order[1]])
    missing = [np.concatenate([batch["missing"] for batch in epoch])[o] for epoch, o in zip(epochs, order, strict=True)]
    tasks = [np.concatenate([batch["task"] for batch in epoch])[o] for epoch, o in zip(epochs, order, strict=True)]
    assert (missing[0] != missing[1]).any() or (tasks[0] != tasks[1]).any()


def test_one_pass_does_not_depend_on_the_batch():
    (whole,) = _pipeline().one_pass(6)
    parts = list(_pipeline().one_pass(4))
    for key, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([part[key] for part in parts]))


def test_degradations_and_augmented_images_do_not_go_together():
    with pytest.raises(ConfigError, match="leave augment at 0"):
        _pipeline(augment=0.1)
