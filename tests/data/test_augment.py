"""Non-leaky augmentation: what is done is what the labels say, and nothing is lost on the way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from diffusion_jax import data
from diffusion_jax.data.augment import SYM6, Move, NonLeaky, warp
from diffusion_jax.errors import ConfigError


def blobs(size=32, shift=(0.0, 0.0), turn=0.0, scale=1.0, stretch=(1.0, 1.0)):
    """Two smooth blobs at known places, moved exactly: [size, size, 1]."""
    y, x = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    total = np.zeros((size, size))
    for cx, cy, weight in ((5.0, 2.0, 1.0), (-3.0, -6.0, 0.6)):
        # Where the pixel came from: undo shift, turn (counter-clockwise on the screen), stretch and scale.
        px, py = x - shift[0], y - shift[1]
        px, py = math.cos(turn) * px - math.sin(turn) * py, math.sin(turn) * px + math.cos(turn) * py
        px, py = px / stretch[0] / scale, py / stretch[1] / scale
        total += weight * np.exp(-((px - cx) ** 2 + (py - cy) ** 2) / (2 * 2.2**2))
    return total[..., None]


def test_the_filter_is_the_orthonormal_one():
    """Sum sqrt(2), orthonormal to its even shifts, and six vanishing moments of its mirror filter."""
    assert abs(SYM6.sum() - math.sqrt(2)) < 1e-9
    for shift in range(0, 12, 2):
        assert abs(SYM6[shift:] @ SYM6[: 12 - shift] - (shift == 0)) < 1e-9
    k = np.arange(12)
    for power in range(6):
        assert abs((SYM6 * (-1.0) ** k * k**power).sum()) < 1e-5 * max(1, 5.0**power)


@pytest.mark.parametrize(
    ("move", "wanted"),
    [
        (Move(), {}),
        (Move(shift_x=0.5, shift_y=-1.0), {"shift": (2.0, -4.0)}),
        (Move(rotation=math.pi / 2), {"turn": math.pi / 2}),
        (Move(rotation=0.4), {"turn": 0.4}),
        (Move(scale=1.2), {"scale": 2**0.24}),
        (Move(stretch=1.5), {"stretch": (2**0.3, 2**-0.3)}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, Move) else "",
)
def test_moves_do_what_they_say(move, wanted):
    """Beside the same smooth picture drawn at the moved places."""
    inner = slice(6, -6)
    np.testing.assert_allclose(move.apply(blobs())[inner, inner], blobs(**wanted)[inner, inner], atol=0.02)


def test_all_at_once_is_one_map_in_order():
    """First the scale, then rotation, stretch and shift: each move of its own, one after the other."""
    move = Move(scale=0.5, rotation=0.7, stretch_angle=0.4, stretch=-1.0, shift_x=0.3, shift_y=0.2)
    steps = [
        Move(scale=0.5), Move(rotation=0.7), Move(stretch_angle=0.4, stretch=-1.0), Move(shift_x=0.3, shift_y=0.2),
    ]  # fmt: skip
    image = blobs(48)
    for step in steps:
        image = step.apply(image)
    inner = slice(12, -12)
    np.testing.assert_allclose(move.apply(blobs(48))[inner, inner], image[inner, inner], atol=0.04)


def test_the_identity_and_whole_shifts_return_the_pixels():
    image = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(warp(image, np.eye(3)), image, atol=1e-6)
    shift = np.eye(3)
    shift[:2, 2] = -3, 2  # the result at x shows the image at x - 3
    reflected = np.pad(image, ((8, 8), (8, 8), (0, 0)), mode="reflect")
    np.testing.assert_allclose(warp(image, shift), reflected[10:26, 5:21], atol=1e-6)
    assert warp(image, shift).dtype == np.float32


def test_shrinking_does_not_alias():
    """A pattern finer than half the pixels vanishes, where plain interpolation would leave stripes."""
    stripes = np.tile(np.array([-1.0, 1.0]), 16)[None, :, None] * np.ones((32, 1, 1))
    shrink = np.diag([1.9, 1.9, 1])
    assert np.abs(warp(stripes, shrink)[8:-8, 8:-8]).max() < 0.3
    plain = ndimage.affine_transform(stripes[..., 0], [1.9, 1.9], offset=-0.9 * 15.5, order=1, mode="mirror")
    assert np.abs(plain[8:-8, 8:-8]).max() > 0.7


def test_flips_are_exact_and_told():
    image = np.random.default_rng(0).uniform(-1, 1, (8, 8, 3))
    np.testing.assert_array_equal(Move(flip_x=1).apply(image), image[:, ::-1])
    np.testing.assert_array_equal(Move(flip_y=1).apply(image), image[::-1])
    assert Move(flip_x=1).labels().tolist() == [1] + [0] * 8


def test_labels():
    """a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7; nothing done is all zeros."""
    move = Move(1, 0, -0.3, math.pi / 3, math.pi / 2, 0.7, 0.1, -0.2)
    np.testing.assert_allclose(move.labels(), [1, 0, -0.3, -0.5, math.sqrt(0.75), 0, 0.7, 0.1, -0.2], atol=1e-7)
    assert not Move().labels().any() and Move().labels().dtype == np.float32


def test_how_often():
    draws = np.array([NonLeaky(0.12).draw(np.random.default_rng(seed)) for seed in range(4000)])
    used = (draws != 0).mean(0)
    np.testing.assert_allclose(used, [0.5, 0.06, 0.12, 0.12, 0.06, 0.12, 0.12, 0.12], atol=0.02)
    assert ((draws[:, 6] != 0) == (draws[:, 7] != 0)).all()  # one coin for both directions
    for column in (2, 5, 6, 7):
        values = draws[draws[:, column] != 0, column]
        assert abs(values.std() - 1) < 0.12 and abs(values.mean()) < 0.15
    turned = draws[draws[:, 3] != 0, 3]
    assert np.abs(turned).max() <= math.pi and abs(turned.std() - math.pi / math.sqrt(3)) < 0.15


CONFIG = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 16}


def test_a_pipeline_that_augments():
    """Training batches say what was done, at any step and on any host alike; passes of evaluation are left alone."""
    pipe = data.from_config({**CONFIG, "augment": 0.5}, seed=1)
    batch = pipe.batch(3)
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (16, 8, 8, 1)
    assert batch["augment"].dtype == np.float32 and batch["augment"].shape == (16, 9)
    plain = data.from_config(CONFIG, seed=1).batch(3)
    assert (plain["label"] == batch["label"]).all() and "augment" not in plain
    for moved, image, told in zip(batch["image"], plain["image"], batch["augment"], strict=True):
        wanted = image.astype(np.float32) / 127.5 - 1
        if not told[1:].any():  # only a horizontal flip, or nothing
            np.testing.assert_allclose(moved, wanted[:, ::-1] if told[0] else wanted, atol=1e-6)
        else:
            assert np.abs(moved - wanted).max() > 0.01
    again = data.from_config({**CONFIG, "augment": 0.5}, seed=1, host=1, hosts=2).batch(3)
    np.testing.assert_array_equal(again["augment"], batch["augment"][8:])
    assert next(pipe.one_pass(4))["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"augment": 1.2}, r"augment must be a number in \[0, 1\]"), ({"augment": 0.1, "flip": True}, "set flip to False")],
)
def test_misfits_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        data.from_config({**CONFIG, **fields})
