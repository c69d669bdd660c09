"""What samples are asked for: by flags, from held-out data and files, or by default."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import Data
from diffusion_jax.data.degradations import TASKS
from diffusion_jax.data.files import masked_images
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.inference import Cascade, Requests, Stage
from diffusion_jax.inference.requests import ask, flags
from diffusion_jax.spec import Spec
from diffusion_jax.systems import ImageAndMask, Labels, LowRes, Sampling
from diffusion_jax.systems.conditioners.labels import label_column
from diffusion_jax.systems.conditioners.low_res import low_res_from
from tests.tiny_systems import make_super_resolution

DIGITS = Data({"source": "digits", "image_size": 16, "channels": 1, "batch_size": 4, "resize": "bicubic"})
LABELS, LOW_RES = Labels(num_classes=10), LowRes(size=8, spec=Spec.image(16, 1))


@pytest.mark.parametrize(
    ("text", "num", "labels"),
    [
        ("all", None, [0, 1, 2, 0, 1, 2, 0]),
        ("2", None, [2, 2, 2, 2, 2, 2, 2]),
        ("2, 0", None, [2, 0, 2, 0, 2, 0, 2]),
        ("2-per-class", 6, [0, 0, 1, 1, 2, 2, 0]),
    ],
)
def test_labels(text, num, labels):
    asked, wanted = ask([Labels(num_classes=3)], DIGITS, given={"labels": text})
    assert wanted == num and asked(np.arange(7))["label"].tolist() == labels == asked.labels(7).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "label 3 is out of range: the model has 3 classes, 0 to 2"),
        ("0,-1", "label -1 is out of range"),
        ("cats", "cannot read labels 'cats'"),
        ("0-per-class", "asks for nothing"),
        ("", "cannot read labels ''"),
        ("1" * 30, "cannot read labels"),
    ],
)
def test_bad_labels(text, message):
    with pytest.raises(ConfigError, match=message):
        label_column(text, 3)


class Animals:
    """Data whose classes have names."""

    class_names = ("cat", "golden retriever", "2", "lynx")


@pytest.mark.parametrize(
    ("text", "labels"),
    [("lynx", [3]), ("golden retriever,cat", [1, 0]), (" lynx , 1", [3, 1]), ("2", [2]), ("1,0", [1, 0])],
)
def test_classes_by_name(text, labels):
    asked, _ = ask([Labels(num_classes=4)], Animals(), given={"labels": text, "negative_labels": text})
    assert asked.columns["label"].tolist() == asked.columns["negative_label"].tolist() == labels


@pytest.mark.parametrize("text", ["lnyx", "cat,lnyx", "-lynx"])
def test_unknown_classes_list_the_nearest(text):
    with pytest.raises(ConfigError, match=r"unknown class .*lnyx|lynx'; did you mean 'lynx'.*cat, golden retriever, 2, lynx"):
        ask([Labels(num_classes=4)], Animals(), given={"labels": text})


def test_what_nobody_spells_out():
    assert ask([LABELS], DIGITS)[0].labels(12).tolist() == [*range(10), 0, 1]
    asked, num = ask([LABELS, LOW_RES], DIGITS, 5)  # held-out images, with their labels
    (batch,) = DIGITS.pipeline("test").one_pass(5, limit=5)
    assert num is None and asked.labels(5).tolist() == batch["label"].tolist()
    for small, image in zip(asked.columns["low_res"], batch["image"], strict=True):
        exact = np.asarray(Image.fromarray(image[..., 0].astype(np.float32)).resize((8, 8), Image.Resampling.BOX))
        assert np.abs(small[..., 0] - exact).max() <= 0.5 + 1e-4
    assert ask([LABELS, LOW_RES], DIGITS, 5, {"labels": "7"})[0].labels(2).tolist() == [7, 7]
    assert ask([], DIGITS)[0] == Requests({})


def test_a_persons_images_bring_their_own_labels_or_none(tmp_path):
    np.savez(tmp_path / "in.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8), arr_1=np.array([3, 4]))
    given = {"input": str(tmp_path / "in.npz")}
    assert ask([LABELS, LOW_RES], DIGITS, 5, given)[0].labels(3).tolist() == [3, 4, 3]
    assert ask([LABELS, LOW_RES], DIGITS, 5, given | {"labels": "9"})[0].labels(3).tolist() == [9, 9, 9]
    np.savez(tmp_path / "in.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    assert ask([LABELS, LOW_RES], DIGITS, 5, given)[0].labels(3) is None


def test_flags_of_conditioners_that_a_run_has_not():
    assert {"labels", "negative_labels", "input", "text", "images", "masks", "task"} <= set(flags())
    with pytest.raises(ConfigError, match="--input is for runs conditioned on 'low_res'; this one is conditioned on 'labels'"):
        ask([LABELS], DIGITS, given={"input": "x"})
    with pytest.raises(ConfigError, match="--labels is for runs conditioned on 'labels'.* it draws from noise alone"):
        ask([], DIGITS, given={"labels": "3"})


def test_requests_repeat_and_are_checked():
    columns = {"low_res": np.zeros((3, 8, 8, 1), np.uint8), "label": np.array([0, 1, 4])}
    assert Requests(columns)(np.array([3, 4]))["label"].tolist() == [0, 1] and Requests({}).labels(4) is None
    cascade = Cascade([Stage(make_super_resolution(), Sampling())])
    Requests(columns).check(cascade, 2)
    with pytest.raises(ConfigError, match="label 4 is out of range"):
        Requests(columns).check(cascade, 3)


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
    with pytest.raises(DataError, match="cannot be read as low-resolution images"):
        low_res_from(str(tmp_path / "text.npz"), (8, 8, 1))


# Image to image -------------------------------------------------------------------------------------------------------

PHOTOGRAPHS = Data({
    "source": {"name": "photographs", "size": 16, "num_examples": 12}, "image_size": 16, "batch_size": 4,
    "degradation": {"name": "mixture"},
})  # fmt: skip
IMAGE = ImageAndMask(spec=Spec.image(16, 3))


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


def test_held_out_images_by_task():
    mixed = ask([IMAGE], PHOTOGRAPHS, 12)[0].columns
    assert mixed["degraded"].shape == (12, 16, 16, 3) and len(set(mixed["task"].tolist())) > 1
    for task in TASKS:
        asked = ask([IMAGE], PHOTOGRAPHS, 3, {"task": task})[0].columns
        assert set(asked["task"].tolist()) == {TASKS.index(task)} and len(asked["degraded"]) == 3


def test_all_of_a_users_images_are_taken(images):
    asked = ask([IMAGE], PHOTOGRAPHS, 3, {"images": str(images / "images"), "task": "colorize"})[0].columns
    assert asked["degraded"].shape == (12, 16, 16, 3) and (asked["degraded"][..., 0] == asked["degraded"][..., 1]).all()
    # A user's compressed images are taken as they are: the centre, reduced by area.
    asked = ask([IMAGE], PHOTOGRAPHS, 3, {"images": str(images / "images"), "task": "jpeg"})[0].columns
    first = np.asarray(Image.open(images / "images" / "00.png"))[::2, 8:40:2]
    np.testing.assert_array_equal(asked["degraded"][0], first)
    assert set(asked["task"].tolist()) == {TASKS.index("jpeg")} and not asked["missing"].any()


def test_masks_belong_to_images_by_name(images):
    given = {"images": str(images / "images"), "masks": str(images / "masks")}
    asked = ask([IMAGE], PHOTOGRAPHS, 3, given)[0].columns
    assert (asked["missing"][:, :8] == 255).all() and (asked["missing"][:, 8:] == 0).all()
    first = np.asarray(Image.open(images / "images" / "00.png"))[::2, 8:40:2]
    np.testing.assert_array_equal(asked["degraded"][0, 8:], first[8:])
    IMAGE.check_request(asked)


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


def test_images_and_masks_that_do_not_fit_are_refused(images):
    wanted = lambda **given: ask([IMAGE], PHOTOGRAPHS, 3, given)  # noqa: E731
    both = {"images": str(images / "images"), "masks": str(images / "masks")}
    with pytest.raises(ConfigError, match="task: unknown 'colourize'; did you mean 'colorize'"):
        wanted(task="colourize")
    with pytest.raises(ConfigError, match="--masks belong to --images"):
        wanted(masks=both["masks"])
    with pytest.raises(ConfigError, match="for inpainting, not for the task 'jpeg'"):
        wanted(task="jpeg", **both)
    Image.new("L", (24, 32), 255).save(images / "masks" / "03.png")
    with pytest.raises(DataError, match=r"03.png: a mask of 24x32 for an image of 48x32: mask and image must have one size"):
        wanted(**both)
    Image.new("L", (48, 32), 0).save(images / "masks" / "03.png")
    with pytest.raises(DataError, match=r"03.png: the mask marks nothing"):
        wanted(**both)
    (images / "masks" / "03.png").unlink()
    with pytest.raises(DataError, match="no mask for the image '03'"):
        wanted(**both)
    with pytest.raises(DataError, match="there is no directory"):
        wanted(images=both["images"], masks=str(images / "nowhere"))
    (images / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        wanted(images=both["images"], masks=str(images / "empty"))
