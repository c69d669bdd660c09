"""The low-resolution image: how it is made, what the network is fed of it at every augmentation level, and SR3's use of it."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from diffusion_jax import systems
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.spec import Spec
from diffusion_jax.systems import LowRes, Sampling, check_request, request_of, to_float
from diffusion_jax.systems.conditioners.low_res import blur, downsample, low_res_from
from diffusion_jax.training.recipes import load_recipe
from tests.tiny_systems import (
    NO_PARAMS,
    fed_in_training,
    low_res_of,
    make_batch,
    make_function,
    make_super_resolution,
    randomize,
    start,
)

RECIPE = Path(__file__).resolve().parents[3] / "configs" / "sr3.py"
TRAINED = {"name": "linear", "num_steps": 2000, "beta_start": 2e-6, "beta_end": 0.02}
SR3 = {"schedule": TRAINED, "prediction": "eps", "variance": "fixed_large", "noise_input": "sqrt_gamma"}
KEY = jax.random.key(0)


# Images between their sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "pil"),
    [("area", Image.Resampling.BOX), ("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_downsample_is_pils_anti_aliased_resize(method, pil):
    x = np.random.default_rng(0).standard_normal((2, 24, 36, 3)).astype(np.float32)
    ours = downsample(x, (8, 12), method)
    for image, small in zip(x, ours, strict=True):
        for channel in range(3):
            theirs = np.asarray(Image.fromarray(image[..., channel], mode="F").resize((12, 8), pil))
            np.testing.assert_allclose(small[..., channel], theirs, atol=2e-6)


def test_area_needs_integer_factors():
    with pytest.raises(ConfigError, match="integer factors"):
        downsample(jnp.zeros((1, 9, 9, 1)), (4, 4), "area")


def test_blur_is_a_3x3_gaussian_filter_of_each_images_own_width():
    x = np.random.default_rng(1).standard_normal((3, 7, 9, 2)).astype(np.float32)
    sigma = np.array([0.0, 0.4, 0.9], np.float32)
    ours = np.asarray(blur(jnp.asarray(x), jnp.asarray(sigma)))
    np.testing.assert_array_equal(ours[0], x[0])
    yy, xx = np.mgrid[-1:2, -1:2]
    for index in (1, 2):
        kernel = np.exp(-(yy**2 + xx**2) / (2 * sigma[index] ** 2))
        theirs = ndimage.correlate(x[index], (kernel / kernel.sum())[..., None], mode="nearest")
        np.testing.assert_allclose(ours[index], theirs, atol=1e-6)


@pytest.mark.parametrize("sides", [(32, 32), (32, 48)])
def test_crops_are_pairs(sides):
    """The low-resolution image of a crop is that crop of the low-resolution image, for every corner, and corners vary."""
    height, width = sides
    low_res = LowRes(size=(height // 4, width // 4), crop_size=(16, width // 2), spec=Spec.image(sides, 1))
    images = np.random.default_rng(0).standard_normal((64, *sides, 1)).astype(np.float32)
    batch = {"image": images, "depth": -images, "label": np.arange(64)}
    cropped = low_res.prepare(batch, KEY, True)
    crops = np.asarray(cropped["image"])
    np.testing.assert_array_equal(cropped["depth"], -crops)  # all that lies over the pixels is cropped alike
    assert cropped["label"] is batch["label"]
    small, corners = np.asarray(low_res.reduce(images)), set()
    for image, crop, low, whole in zip(images, crops, np.asarray(low_res.reduce(crops)), small, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], crop.shape[:2])
        (corner,) = np.argwhere((windows == crop[..., 0]).all((-1, -2)))
        corners.add(tuple(corner))
        top, left = corner // 4
        np.testing.assert_allclose(low, whole[top : top + 4, left : left + width // 8], atol=1e-6)
        assert not (corner % 4).any()
    assert len(corners) > 15 and {row for row, _ in corners} == {0, 4, 8, 12, 16}
    assert {column for _, column in corners} == set(range(0, width // 2 + 1, 4))
    central = low_res.prepare(batch, KEY, False)["image"]
    left = width // 4 // 4 * 4
    np.testing.assert_array_equal(central, images[:, 8:24, left : left + width // 2])


# Augmentation ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system():
    return make_super_resolution()


@pytest.fixture(scope="module")
def params(system):
    return randomize(start(system))


def test_at_level_0_the_network_is_fed_the_plain_low_res_image(system, params):
    request = request_of(system, make_batch())
    sampling = Sampling(steps=1, aug_level=0.0, threshold="none")
    x, t = jax.random.normal(jax.random.key(1), (8, 16, 16, 1)), jnp.full(8, 0.5)
    clean = to_float(request["low_res"])
    plain = np.stack(
        [np.asarray(Image.fromarray(i[..., 0].astype(np.float32)).resize((8, 8), Image.Resampling.BOX))
         for i in make_batch()["image"]]
    )[..., None] / 127.5 - 1  # fmt: skip
    fed = low_res_of(system).corrupt(clean, jnp.zeros(8), jax.random.normal(jax.random.key(3), (8, 8, 8, 1)))
    np.testing.assert_array_equal(fed["low_res"], clean)  # not a bit of the noise
    np.testing.assert_allclose(fed["low_res"], plain, atol=1 / 255 + 1e-6)  # a request is in bytes
    np.testing.assert_allclose(low_res_of(system).reduce(to_float(make_batch()["image"])), plain, atol=1e-6)
    cond = low_res_of(system).sampling(request, jax.random.key(2), jnp.arange(8), sampling)
    np.testing.assert_array_equal(cond["low_res"], clean)
    np.testing.assert_array_equal(cond["aug_level"], jnp.zeros(8))

    @jax.jit
    def both(params, x, request):
        ours = system.denoiser(params, jax.random.key(2), request, jnp.arange(8), sampling)(x, t)
        given = {"low_res": to_float(request["low_res"]), "aug_level": jnp.zeros(8), "label": request["label"]}
        return ours.x0, system.process.bind(system.network.apply, params["network"], given)(x, t).x0

    np.testing.assert_allclose(*both(params, x, request), atol=1e-5)


def test_at_the_top_level_the_output_no_longer_depends_on_the_low_res_image(system, params):
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (4, 8, 8, 1), np.uint8) for _ in range(2))
    label = np.zeros(4, np.int32)

    @jax.jit
    def pair(level_key, low_res):
        draw = lambda level: system.sample(  # noqa: E731
            params, level_key, {"low_res": low_res, "label": label}, jnp.arange(4),
            Sampling(solver="ddim", steps=2, aug_level=level),
        )  # fmt: skip
        return draw(1.0), draw(0.0)

    (top, bottom), (top_other, bottom_other) = pair(KEY, first), pair(KEY, second)
    assert np.abs(bottom - bottom_other).max() > 0.1
    assert np.abs(top - top_other).max() < 2e-3


def test_the_corruption_has_the_variance_of_its_own_schedule():
    low_res = LowRes(size=8, aug_schedule={"name": "straight_line"}, spec=Spec.image(16, 1))
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    fed = low_res.corrupt(jnp.ones((2, 8, 8, 1)), jnp.array([0.25, 0.75]), jnp.asarray(noise))
    np.testing.assert_allclose(fed["low_res"][0], 0.75 + 0.25 * noise[0], atol=1e-6)
    np.testing.assert_allclose(fed["low_res"][1], 0.25 + 0.75 * noise[1], atol=1e-6)
    np.testing.assert_allclose(fed["aug_level"], [250, 750])


def _fed(count: int = 2000, train: bool = True, **fields) -> tuple[np.ndarray, dict]:
    """(clean low-resolution images, what the network is fed) of a training batch."""
    batch, low_res = make_batch(8, count), {"size": 4, **fields}
    cond = fed_in_training(batch, train=train, conditioners={"low_res": low_res})[2]
    return np.asarray(downsample(to_float(batch["image"]), (4, 4))), cond


def test_training_draws_the_level_uniformly_per_example_and_noises_to_it():
    clean, cond = _fed()
    level = np.asarray(cond["aug_level"]) / 1000
    assert abs(level.mean() - 0.5) < 4 / np.sqrt(12 * 2000) and level.min() < 0.01 and level.max() > 0.99
    # low_res = cos(a) clean + sin(a) noise up to the schedule's truncation: take the noise out, it is standard normal
    angle = (level * np.pi / 2)[:, None, None, None]
    noise = (np.asarray(cond["low_res"]) - np.cos(angle) * clean) / np.sin(angle)
    big = level > 0.05
    assert abs(noise[big].mean()) < 0.03 and abs(noise[big].std() - 1) < 0.02


def test_levels_can_be_restricted_and_augmentation_left_out():
    level = np.asarray(_fed(200, aug_levels=(0.2, 0.4))[1]["aug_level"])
    assert 200 <= level.min() and level.max() <= 400
    clean, cond = _fed(50, aug_schedule=None)
    np.testing.assert_array_equal(cond["low_res"], clean)
    assert set(cond) == {"low_res"}


def test_blur_augmentation_has_its_rate_in_training_only():
    clean, cond = _fed(aug_schedule=None, blur_prob=0.3)
    blurred = (np.abs(np.asarray(cond["low_res"]) - clean) > 1e-6).any((1, 2, 3))
    assert abs(blurred.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    clean, cond = _fed(50, train=False, aug_schedule=None, blur_prob=1.0)
    np.testing.assert_array_equal(cond["low_res"], clean)
    clean, cond = _fed(50, aug_schedule=None, blur_prob=1.0, blur_sigma=(0.5, 0.5))
    taps = np.exp([-2.0, 0.0, -2.0])  # (1 / 0.5)^2 / 2
    expected = ndimage.correlate1d(clean.astype(np.float64), taps / taps.sum(), 1, mode="nearest")
    expected = ndimage.correlate1d(expected, taps / taps.sum(), 2, mode="nearest")
    np.testing.assert_allclose(cond["low_res"], expected, atol=1e-6)


def test_corruption_at_sampling_belongs_to_the_sample(system):
    low_res = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    cond = lambda rows: low_res_of(system).sampling(  # noqa: E731
        {"low_res": low_res[rows]}, KEY, jnp.array(rows), Sampling(aug_level=0.5)
    )
    np.testing.assert_array_equal(cond([0, 1, 2, 3])["low_res"][2:], cond([2, 3])["low_res"])
    low_res[1] = low_res[0]
    first, second = np.asarray(cond([0, 1])["low_res"])
    assert (first != second).mean() > 0.9  # each has noise of its own


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 5}, "to divide"),
        ({"size": 32}, r"size \(32, 32\) must lie within image_size \(16, 16\)"),
        ({"resize": "bicubc"}, "did you mean 'bicubic'"),
        ({"aug_levels": (0.5, 0.2)}, "aug_levels"),
        ({"blur_prob": 2.0}, "blur_prob"),
        ({"crop_size": 15}, r"crop_size \(15, 15\) must be a multiple"),
        ({"crop_size": 24}, "and at most image_size"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_super_resolution(low_res=fields)


def test_bad_requests(system):
    with pytest.raises(ConfigError, match="needs 'low_res'"):
        check_request(system, {"label": np.zeros(1, int)})
    with pytest.raises(ConfigError, match=r"\(4, 4, 1\), the model was trained on \(8, 8, 1\)"):
        check_request(system, {"label": np.zeros(1, int), "low_res": np.zeros((1, 4, 4, 1))})
    plain = make_super_resolution(low_res={"aug_schedule": None})
    with pytest.raises(ConfigError, match="without noise-conditioning augmentation"):
        plain.check_sampling(Sampling(aug_level=0.1))
    with pytest.raises(ConfigError, match="truncated to False"):
        plain.check_sampling(Sampling(truncated=True))


def test_an_image_that_is_smaller_than_the_low_resolution_size(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    assert low_res_from(str(tmp_path), (30, 30, 3))["low_res"].shape == (1, 30, 30, 3)
    assert low_res_from(str(tmp_path), (15, 40, 3))["low_res"].shape == (1, 15, 40, 3)
    with pytest.raises(DataError, match=r"small.png has 40x30 pixels, fewer than the low-resolution size 32x32"):
        low_res_from(str(tmp_path), (32, 32, 3))


# SR3: the published sizes, and one checkpoint on any list of betas -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "millions", "published"), [("16_128", 574.8, 550), ("64_256", 633.5, 625), ("64_512", 618.2, 625),
                                         ("256_1024", 149.7, 150)]
)  # fmt: skip
def test_published_shapes_have_about_the_published_parameters(shape, millions, published):
    # Papers round, and say too little of the blocks: ours are those of ADM's blocks, counted independently.
    system = systems.from_config(load_recipe(f"{RECIPE}:{shape}"))
    low, high = map(int, shape.split("_"))
    assert low_res_of(system).shape == (low, low, 3) and system.spec.shape == (high, high, 3)
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(system.init, KEY)))
    print(f"SR3 {shape}: {count:,} parameters (published {published}M)")
    assert abs(count / 1e6 - millions) < 0.1
    assert system.network.module.skip_scale == pytest.approx(2**-0.5)


def _enlarging():
    """A system whose network answers with the enlarged low-resolution image, whatever the schedule."""

    def function(x, noise, cond):
        clean = jax.image.resize(cond["low_res"], x.shape, "bicubic")
        alpha = (noise / 1000)[:, None, None, None]
        return (x - alpha * clean) / jnp.sqrt(1 - alpha**2)

    low_res = {"size": 4, "aug_schedule": None, "resize": "bicubic"}
    return make_function(function, size=16, conditioners={"low_res": low_res}, process=SR3)


def test_the_low_resolution_image_is_pils_bicubic_and_levels_are_continuous():
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 1), np.uint8)
    low_res = {"size": 4, "aug_schedule": None, "resize": "bicubic"}
    fields = {"size": 16, "conditioners": {"low_res": low_res}, "process": SR3, "objective": {"times": "piecewise_uniform"}}
    _, level, cond = fed_in_training({"image": images}, **fields)
    for image, low in zip(images, np.asarray(cond["low_res"]), strict=True):
        exact = Image.fromarray(image[..., 0] / np.float32(127.5) - 1).resize((4, 4), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(low[..., 0], exact, atol=1e-5)
    steps = 1000 * np.sqrt(np.cumprod(1 - np.linspace(1e-6, 1e-2, 2000)))
    distance = np.abs(np.asarray(level)[:, None] - steps).min(1) / np.abs(np.diff(steps)).max()
    assert (distance > 1e-3).mean() > 0.8  # between the steps, not on them


@pytest.mark.slow
def test_any_list_of_betas_samples_from_one_checkpoint():
    system = _enlarging()
    low_res = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)
    expected = np.clip(jax.image.resize(to_float(low_res), (4, 16, 16, 1), "bicubic"), -1, 1)
    draw = lambda **fields: np.asarray(system.sample(  # noqa: E731
        NO_PARAMS, KEY, {"low_res": low_res}, jnp.arange(4), Sampling(solver="ddpm", **fields)
    ))  # fmt: skip
    for steps, last in ((10, 0.98), (100, 0.3)):
        schedule = {"name": "quadratic", "num_steps": steps, "beta_start": 1e-6, "beta_end": last}
        np.testing.assert_allclose(draw(steps=steps, schedule=schedule), expected, atol=0.02)
    # The list that it was trained on, given again, changes not a bit; another one does.
    own = {"name": "betas", "betas": np.linspace(1e-6, 1e-2, 2000).tolist()}
    np.testing.assert_array_equal(draw(steps=20), draw(steps=20, schedule=own))
    assert (draw(steps=20) != draw(steps=20, schedule={"name": "linear", "num_steps": 1000})).any()


def test_another_schedule_needs_a_network_that_takes_levels():
    plain = make_super_resolution(low_res={"aug_schedule": None}, process={"schedule": TRAINED, "prediction": "eps"})
    with pytest.raises(ConfigError, match="'rescaled_timestep'"):
        plain.check_sampling(Sampling(schedule="linear"))
