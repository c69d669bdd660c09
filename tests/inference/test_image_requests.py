"""What image-to-image models are asked for: held-out images, a user's images, and masks."""

from __future__ import annotations

import numpy as np
import pytest
from diffusion_jax.inference.image_requests import image_requests
from PIL import Image

from diffusion_jax.data.degradations import TASKS
from diffusion_jax.data.files import masked_images
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.systems import Palette
from tests.tiny_systems import PROCESS, FunctionNetwork

CONFIG = {
    "seed": 0,
    "data": {
        "source": {"name": "photographs", "size": 16, "num_examples": 12},
        "image_size": 16,
        "channels": 3,
        "batch_size": 4,
        "degradation": {"name": "mixture"},
    },
}


@pytest.fixture(scope="module")
def system():
    network = FunctionNetwork(lambda x, noise, cond: 0 * x, (16, 16, 3), {"image": None})
    return Palette(image_size=16, process=PROCESS, network=network)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(12):
        pixels = np.kron(rng.integers(0, 256, (16, 24, 3), np.uint8), np.ones((2, 2, 1), np.uint8))
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index:02d}.png")
        mask = np.zeros((32, 48), np.uint8)
        mask[:16] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index:02d}.png")
    return tmp_path


def test_held_out_images_by_task(system):
    mixed = image_requests(system, CONFIG, 12)
    assert mixed["degraded"].shape == (12, 16, 16, 3) and len(set(mixed["task"].tolist())) > 1
    for task in TASKS:
        asked = image_requests(system, CONFIG, 3, task=task)
        assert set(asked["task"].tolist()) == {TASKS.index(task)} and len(asked["degraded"]) == 3


def test_all_of_a_users_images_are_taken(system, images):
    asked = image_requests(system, CONFIG, 3, images=str(images / "images"), task="colorize")
    assert asked["degraded"].shape == (12, 16, 16, 3) and (asked["degraded"][..., 0] == asked["degraded"][..., 1]).all()
    # A user's compressed images are taken as they are: the centre, reduced by area.
    asked = image_requests(system, CONFIG, 3, images=str(images / "images"), task="jpeg")
    first = np.asarray(Image.open(images / "images" / "00.png"))[::2, 8:40:2]
    np.testing.assert_array_equal(asked["degraded"][0], first)
    assert set(asked["task"].tolist()) == {TASKS.index("jpeg")} and not asked["missing"].any()


def test_masks_belong_to_images_by_name(system, images):
    asked = image_requests(system, CONFIG, 3, images=str(images / "images"), masks=str(images / "masks"))
    assert (asked["missing"][:, :8] == 255).all() and (asked["missing"][:, 8:] == 0).all()
    first = np.asarray(Image.open(images / "images" / "00.png"))[::2, 8:40:2]
    np.testing.assert_array_equal(asked["degraded"][0, 8:], first[8:])
    system.check_request(asked)


def test_masks_may_lie_in_sub_folders_have_colour_channels_and_other_endings(tmp_path):
    for number, folder in enumerate(("a", "b")):
        for kind in ("images", "masks"):
            (tmp_path / kind / folder).mkdir(parents=True)
        Image.new("RGB", (6, 4), (10 * number, 0, 0)).save(tmp_path / "images" / folder / "one.png")
        Image.new("RGB", (6, 4), (100 * number,) * 3).save(tmp_path / "masks" / folder / "one.webp", lossless=True)
    found = list(masked_images(tmp_path / "images", tmp_path / "masks"))
    assert [path for path, _, _ in found] == [tmp_path / "masks" / folder / "one.webp" for folder in ("a", "b")]
    for number, (_, image, mask) in enumerate(found):
        assert image.shape == (4, 6, 3) and (image[..., 0] == 10 * number).all()
        assert mask.shape == (4, 6, 1) and (mask == 100 * number).all()


def test_what_does_not_fit_is_refused(system, images):
    ask = lambda **fields: image_requests(system, CONFIG, 3, **fields)  # noqa: E731
    both = {"images": str(images / "images"), "masks": str(images / "masks")}
    with pytest.raises(ConfigError, match="unknown task 'colourize'; did you mean 'colorize'"):
        ask(task="colourize")
    with pytest.raises(ConfigError, match="--masks belong to --images"):
        ask(masks=both["masks"])
    with pytest.raises(ConfigError, match="for inpainting, not for the task 'jpeg'"):
        ask(task="jpeg", **both)
    Image.new("L", (24, 32), 255).save(images / "masks" / "03.png")
    with pytest.raises(DataError, match=r"03.png: a mask of 24x32 for an image of 48x32: mask and image must have one size"):
        ask(**both)
    Image.new("L", (48, 32), 0).save(images / "masks" / "03.png")
    with pytest.raises(DataError, match=r"03.png: the mask marks nothing"):
        ask(**both)
    (images / "masks" / "03.png").unlink()
    with pytest.raises(DataError, match="no mask for the image '03'"):
        ask(**both)
    with pytest.raises(DataError, match="there is no directory"):
        ask(images=both["images"], masks=str(images / "nowhere"))
    (images / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        ask(images=both["images"], masks=str(images / "empty"))
