"""Text as conditioning: what the network is given, dropped, guided by, and handed on in a cascade."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import Cascade, Stage
from diffusion_jax.systems import Sampling, TextGeneration, TextSuperResolution
from tests.tiny_systems import PROCESS, FunctionNetwork, randomize, start

SPEC = {"text": {"tokens": None, "mask": None}}
UNET = {
    "name": "efficient_unet",
    "channels": 8,
    "groups": 4,
    "num_heads": 2,
    "multipliers": (1,),
    "num_res_blocks": (1,),
    "strides": (1,),
    "self_attention": (False,),
    "text_attention": (True,),
}


def told(x, cond):
    """As x0, the sum of the tokens that the mask shows, everywhere."""
    value = (cond["text"]["tokens"] * cond["text"]["mask"][..., None]).sum((1, 2))
    return jnp.broadcast_to(value[:, None, None, None], x.shape)


def text_system(**fields):
    """A system without parameters, that draws what `told` says."""
    network = FunctionNetwork(lambda x, noise, cond: told(x, cond), (8, 8, 1), SPEC)
    process = {"schedule": "cosine_continuous", "prediction": "x0"}
    return TextGeneration(**{"image_size": 8, "channels": 1, "process": process, "network": network, "text_dim": 2, **fields})


def texts(values, name="text"):
    """A text of one token beside a masked one, for each number."""
    tokens = np.zeros((len(values), 2, 2), np.float16)
    tokens[:, 0, 1], tokens[:, 1] = values, 9
    return {name: tokens, f"{name}_mask": np.tile([True, False], (len(values), 1))}


def draw(system, request, **sampling):
    sampling = Sampling.from_config({"solver": "ddim", "steps": 2, "threshold": "none", **sampling})
    count = len(request["text"])
    return np.asarray(system.sample({}, jax.random.key(0), request, jnp.arange(count), sampling))


def test_guidance_moves_away_from_no_text():
    """The null says 0, so that guidance w draws w times the text; a negative text takes its place."""
    system, request = text_system(), texts([0.2, -0.1])
    np.testing.assert_allclose(draw(system, request)[:, 0, 0, 0], [0.2, -0.1], atol=2e-3)
    np.testing.assert_allclose(draw(system, request, guidance=3.0)[:, 0, 0, 0], [0.6, -0.3], atol=5e-3)
    against = {**request, **texts([0.1, 0.1], "negative_text")}
    np.testing.assert_allclose(draw(system, against, guidance=3.0)[:, 0, 0, 0], [0.4, -0.5], atol=5e-3)


def test_the_dynamic_threshold_comes_after_guidance_and_is_per_sample():
    """Guided to 2 and to 0.4: each sample is divided by its own percentile, but never by less than 1."""
    images = draw(text_system(), texts([0.5, 0.1]), guidance=4.0, threshold="dynamic")
    np.testing.assert_allclose(images[:, 0, 0, 0], [1.0, 0.4], atol=5e-3)


def test_text_is_dropped_as_often_as_asked_and_whole():
    system, count = text_system(cond_drop=0.25), 4000
    batch = {"image": np.zeros((count, 8, 8, 1), np.uint8), **texts(np.ones(count))}
    given = system._training_cond(jnp.zeros((count, 8, 8, 1)), batch, jax.random.key(0), True)["text"]
    gone = ~np.asarray(given["mask"]).any(-1)
    assert gone.mean() == pytest.approx(0.25, abs=0.03)
    assert not np.asarray(given["tokens"])[gone].any() and np.asarray(given["tokens"])[~gone].all(0)[0, 1]
    kept = system._training_cond(jnp.zeros((count, 8, 8, 1)), batch, jax.random.key(0), False)["text"]
    assert np.asarray(kept["mask"])[:, 0].all() and kept["tokens"].dtype == jnp.float32
    # A loss of 0 without dropping says that the text of each image was its own.
    images = np.array([0, 128, 255, 64])
    batch = {"image": np.broadcast_to(images[:, None, None, None], (4, 8, 8, 1)).astype(np.uint8)} | texts(images / 127.5 - 1)
    assert float(system.loss({}, {}, batch, jax.random.key(1), train=False)[0]) < 1e-4
    assert float(system.loss({}, {}, batch, jax.random.key(1))[0]) >= 0


def test_a_given_pooled_vector_goes_with_its_text():
    """It is dropped with it, guidance leads away from zeros or from the negative one, and it has a width of its own."""
    spec = {"text": {"tokens": None, "mask": None, "pooled": None}}
    value = lambda cond: cond["text"]["pooled"].sum(-1)[:, None, None, None]  # noqa: E731
    network = FunctionNetwork(lambda x, noise, cond: value(cond) + 0 * x, (8, 8, 1), spec)
    system = text_system(network=network, pooled_dim=3, cond_drop=0.25)
    pooled = lambda numbers: np.array(numbers)[:, None] * np.array([[2.0, 0.0, -1.0]], np.float16)  # noqa: E731
    request = {**texts([9, 9]), "text_pooled": pooled([0.2, -0.1])}
    system.check_request(request)
    np.testing.assert_allclose(draw(system, request, guidance=3.0)[:, 0, 0, 0], [0.6, -0.3], atol=5e-3)
    against = {**request, **texts([8, 8], "negative_text"), "negative_text_pooled": pooled([0.1, 0.1])}
    system.check_request(against)
    np.testing.assert_allclose(draw(system, against, guidance=3.0)[:, 0, 0, 0], [0.4, -0.5], atol=5e-3)
    batch = {"image": np.zeros((400, 8, 8, 1), np.uint8), **texts(np.ones(400)), "text_pooled": pooled(np.ones(400))}
    given = system._training_cond(jnp.zeros((400, 8, 8, 1)), batch, jax.random.key(0), True)["text"]
    gone = ~np.asarray(given["mask"]).any(-1)
    assert 50 < gone.sum() < 150 and not np.asarray(given["pooled"])[gone].any() and np.asarray(given["pooled"])[~gone, 0].all()
    assert system.request(batch).keys() == {"text", "text_mask", "text_pooled"}
    with pytest.raises(ConfigError, match="a request needs 'text_pooled'"):
        system.check_request(texts([9, 9]))
    with pytest.raises(ConfigError, match=r"'text_pooled' has the shape \(2, 2\), .*, pooled vectors \[N, 3\]"):
        system.check_request({**request, "text_pooled": np.zeros((2, 2))})


def upscaler(**fields):
    defaults = {"image_size": 16, "channels": 1, "process": PROCESS, "network": UNET, "text_dim": 2, "text_length": 2}
    return TextSuperResolution(**{**defaults, "low_res_size": 8, **fields})


def test_crops_are_pairs():
    """The low-resolution image of a crop is that crop of the low-resolution image, for every corner, and corners vary."""
    system = upscaler(image_size=32, low_res_size=8, crop_size=16)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((64, 32, 32, 1)).astype(np.float32)
    crops = np.asarray(system.crop(images, jax.random.key(0), True))
    small, corners = np.asarray(system.low_res(images)), set()
    for image, crop, low, whole in zip(images, crops, np.asarray(system.low_res(crops)), small, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image[..., 0], (16, 16))
        (corner,) = np.argwhere((windows == crop[..., 0]).all((-1, -2)))
        corners.add(tuple(corner))
        top, left = corner // 4
        np.testing.assert_allclose(low, whole[top : top + 4, left : left + 4], atol=1e-6)
        assert not (corner % 4).any()
    assert len(corners) > 15 and {row for row, _ in corners} == {0, 4, 8, 12, 16}
    central = np.asarray(system.crop(images, jax.random.key(0), False))
    np.testing.assert_array_equal(central, images[:, 8:24, 8:24])


def test_three_stages_hand_the_text_on():
    """Base 8, then 16, then 32 by a network trained on crops; the text reaches every stage."""
    base = text_system(text_length=2)
    first, second = upscaler(), upscaler(image_size=32, low_res_size=16, crop_size=16)
    sampling = Sampling(solver="ddim", steps=2, aug_level=0.1)
    cascade = Cascade([Stage(base, Sampling(solver="ddim", steps=2)), Stage(first, sampling), Stage(second, sampling)])
    assert cascade.image_shape == (32, 32, 1)
    params = [{}, *(randomize(start(system)) for system in (first, second))]
    run = jax.jit(lambda request: cascade.sample(params, jax.random.key(0), request, jnp.arange(2)))
    request = texts([0.5, -0.5])
    cascade.check_request(request)
    drawn = run(request)
    assert [stage.shape for stage in drawn] == [(2, 8, 8, 1), (2, 16, 16, 1), (2, 32, 32, 1)]
    # Only what the base says of it is the same for both orders of the token's features: later stages see the text itself.
    mirrored = {**request, "text": request["text"][..., ::-1].copy()}
    other = run(mirrored)
    np.testing.assert_array_equal(drawn[0], other[0])
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(drawn[1:], other[1:], strict=True))
    with pytest.raises(ConfigError, match="a request needs 'text'"):
        cascade.check_request({})


def test_errors_name_the_text():
    with pytest.raises(ConfigError, match="leave num_classes out"):
        text_system(num_classes=4)
    with pytest.raises(ConfigError, match="cond_drop > 0"):
        text_system(cond_drop=0.0).check_sampling(Sampling(guidance=2.0))
    with pytest.raises(ConfigError, match=r"texts are \[N, L, 2\]"):
        text_system().check_request({**texts([1.0]), "text": np.zeros((1, 2, 3))})
    with pytest.raises(ConfigError, match="'negative_text_mask'"):
        text_system().check_request({**texts([1.0]), "negative_text": np.zeros((1, 2, 2))})
    with pytest.raises(ConfigError, match="no text embeddings"):
        text_system().check(data.from_config({"source": "digits", "image_size": 8, "channels": 1, "batch_size": 4}))
    with pytest.raises(ConfigError, match="crop_size 15 must be a multiple"):
        upscaler(crop_size=15)
