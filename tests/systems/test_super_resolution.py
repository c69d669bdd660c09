"""Super-resolution: what the network is told of the low-resolution image, at every augmentation level."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Sampling, SuperResolution, to_float
from tests.tiny_systems import PROCESS, FunctionNetwork, make_batch, make_super_resolution, randomize, start


@pytest.fixture(scope="module")
def system() -> SuperResolution:
    return make_super_resolution()


@pytest.fixture(scope="module")
def params(system):
    return randomize(start(system))


def test_at_level_0_the_network_is_fed_plain_low_res_conditioning(system, params):
    request = system.request(make_batch())
    sampling = Sampling(steps=1, aug_level=0.0, threshold="none")
    x, t = jax.random.normal(jax.random.key(1), (8, 16, 16, 1)), jnp.full(8, 0.5)
    ours = system.denoiser(params, jax.random.key(2), request, jnp.arange(8), sampling)(x, t)
    plain = np.stack(
        [np.asarray(Image.fromarray(i[..., 0].astype(np.float32)).resize((8, 8), Image.Resampling.BOX))
         for i in make_batch()["image"]]
    )[..., None] / 127.5 - 1  # fmt: skip
    told = system.conditioning(request["low_res"], jnp.zeros(8), jax.random.normal(jax.random.key(3), (8, 8, 8, 1)))
    np.testing.assert_array_equal(told["low_res"], request["low_res"])  # not a bit of the noise
    np.testing.assert_allclose(told["low_res"], plain, atol=1e-6)
    cond = {"low_res": request["low_res"], "aug_level": jnp.zeros(8), "label": request["label"]}
    theirs = system.process.bind(system.network.apply, params, cond)(x, t)
    np.testing.assert_array_equal(ours.x0, theirs.x0)


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

    (top, bottom), (top_other, bottom_other) = pair(jax.random.key(0), first), pair(jax.random.key(0), second)
    assert np.abs(bottom - bottom_other).max() > 0.1
    assert np.abs(top - top_other).max() < 2e-3


def test_the_corruption_has_the_variance_of_its_own_schedule():
    system = make_super_resolution(aug_schedule={"name": "straight_line"}, num_classes=0)
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    told = system.conditioning(jnp.ones((2, 8, 8, 1)), jnp.array([0.25, 0.75]), jnp.asarray(noise))
    np.testing.assert_allclose(told["low_res"][0], 0.75 + 0.25 * noise[0], atol=1e-6)
    np.testing.assert_allclose(told["low_res"][1], 0.25 + 0.75 * noise[1], atol=1e-6)
    np.testing.assert_allclose(told["aug_level"], [250, 750])


def _told(count: int = 2000, train: bool = True, **fields) -> tuple[jax.Array, dict]:
    """(clean low-resolution images, what the network is told) of a training batch."""
    told = []

    def function(x, noise, cond):
        told.append(cond)
        return jnp.zeros_like(x)

    keys = {"low_res": None} if "aug_schedule" in fields else {"low_res": None, "aug_level": None}
    network = FunctionNetwork(function, (8, 8, 1), keys)
    system = make_super_resolution(image_size=8, low_res_size=4, num_classes=0, network=network, **fields)
    batch = make_batch(8, count)
    system.loss({}, system.init_state(), batch, jax.random.key(0), train=train)
    return system.low_res(to_float(batch["image"])), told[-1]


def test_training_draws_the_level_uniformly_per_example_and_noises_to_it():
    clean, cond = _told()
    level = np.asarray(cond["aug_level"]) / 1000
    assert abs(level.mean() - 0.5) < 4 / np.sqrt(12 * 2000) and level.min() < 0.01 and level.max() > 0.99
    # low_res = cos(a) clean + sin(a) noise up to the schedule's truncation: take the noise out, it is standard normal
    angle = (level * np.pi / 2)[:, None, None, None]
    noise = (np.asarray(cond["low_res"]) - np.cos(angle) * np.asarray(clean)) / np.sin(angle)
    big = level > 0.05
    assert abs(noise[big].mean()) < 0.03 and abs(noise[big].std() - 1) < 0.02


def test_levels_can_be_restricted_and_augmentation_left_out():
    level = np.asarray(_told(200, aug_levels=(0.2, 0.4))[1]["aug_level"])
    assert 200 <= level.min() and level.max() <= 400
    clean, cond = _told(50, aug_schedule=None)
    np.testing.assert_array_equal(cond["low_res"], clean)


def test_blur_augmentation_has_its_rate_in_training_only():
    clean, cond = _told(aug_schedule=None, blur_prob=0.3)
    blurred = (np.abs(np.asarray(cond["low_res"]) - np.asarray(clean)) > 1e-6).any((1, 2, 3))
    assert abs(blurred.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    clean, cond = _told(50, train=False, aug_schedule=None, blur_prob=1.0)
    np.testing.assert_array_equal(cond["low_res"], clean)
    clean, cond = _told(50, aug_schedule=None, blur_prob=1.0, blur_sigma=(0.5, 0.5))
    taps = np.exp([-2.0, 0.0, -2.0])  # (1 / 0.5)^2 / 2
    expected = ndimage.correlate1d(np.asarray(clean, np.float64), taps / taps.sum(), 1, mode="nearest")
    expected = ndimage.correlate1d(expected, taps / taps.sum(), 2, mode="nearest")
    np.testing.assert_allclose(cond["low_res"], expected, atol=1e-6)


def test_corruption_at_sampling_belongs_to_the_sample(system):
    low_res = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    cond = lambda rows: system._sampling_cond(  # noqa: E731
        {"low_res": low_res[rows]}, jax.random.key(0), jnp.array(rows), Sampling(aug_level=0.5)
    )
    np.testing.assert_array_equal(cond([0, 1, 2, 3])["low_res"][2:], cond([2, 3])["low_res"])
    low_res[1] = low_res[0]
    first, second = np.asarray(cond([0, 1])["low_res"])
    assert (first != second).mean() > 0.9  # each has noise of its own


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low_res_size": 5}, "to divide"),
        ({"low_res_size": 32}, "must lie in 1 to image_size"),
        ({"low_res_resize": "bicubc"}, "did you mean 'bicubic'"),
        ({"aug_levels": (0.5, 0.2)}, "aug_levels"),
        ({"blur_prob": 2.0}, "blur_prob"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_super_resolution(**fields)


def test_bad_requests(system):
    with pytest.raises(ConfigError, match="needs 'low_res'"):
        system.check_request({"label": np.zeros(1, int)})
    with pytest.raises(ConfigError, match=r"\(4, 4, 1\), the model was trained on \(8, 8, 1\)"):
        system.check_request({"label": np.zeros(1, int), "low_res": np.zeros((1, 4, 4, 1))})
    plain = make_super_resolution(aug_schedule=None, process=PROCESS)
    with pytest.raises(ConfigError, match="without noise-conditioning augmentation"):
        plain.check_sampling(Sampling(aug_level=0.1))
    with pytest.raises(ConfigError, match="truncated to False"):
        plain.check_sampling(Sampling(truncated=True))
