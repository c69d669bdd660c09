"""Text as conditioning: what the network is fed, what is dropped, and what guidance leads away from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Sampling, check_request, request_of
from tests.tiny_systems import NO_PARAMS, fed_in_training, loss_of, make_function

PROCESS = {"schedule": "cosine_continuous", "prediction": "x0"}
KEY = jax.random.key(0)


def sum_of_tokens(x, noise, cond):
    """As x0, the sum of the tokens that the mask shows, everywhere."""
    value = (cond["text"]["tokens"] * cond["text"]["mask"][..., None]).sum((1, 2))
    return jnp.broadcast_to(value[:, None, None, None], x.shape)


def make_text(function=sum_of_tokens, **text):
    """A system without parameters, that draws the sum of its text's tokens."""
    return make_function(function, process=PROCESS, conditioners={"text": {"dim": 2, **text}})


def texts(values, name="text"):
    """A text of one token beside a masked one, for each number."""
    tokens = np.zeros((len(values), 2, 2), np.float16)
    tokens[:, 0, 1], tokens[:, 1] = values, 9
    return {name: tokens, f"{name}_mask": np.tile([True, False], (len(values), 1))}


def draw(system, request, **sampling):
    """The first pixel of each sample."""
    sampling = Sampling.from_config({"solver": "ddim", "steps": 2, "threshold": "none", **sampling})
    return np.asarray(system.sample(NO_PARAMS, KEY, request, jnp.arange(len(request["text"])), sampling))[:, 0, 0, 0]


def test_guidance_moves_away_from_no_text():
    """The null says 0, so that guidance w draws w times the text; a negative text takes its place."""
    system, request = make_text(), texts([0.2, -0.1])
    np.testing.assert_allclose(draw(system, request), [0.2, -0.1], atol=2e-3)
    np.testing.assert_allclose(draw(system, request, guidance=3.0), [0.6, -0.3], atol=5e-3)
    against = {**request, **texts([0.1, 0.1], "negative_text")}
    np.testing.assert_allclose(draw(system, against, guidance=3.0), [0.4, -0.5], atol=5e-3)


def test_the_dynamic_threshold_comes_after_guidance_and_is_per_sample():
    """Guided to 2 and to 0.4: each sample is divided by its own percentile, but never by less than 1."""
    np.testing.assert_allclose(draw(make_text(), texts([0.5, 0.1]), guidance=4.0, threshold="dynamic"), [1.0, 0.4], atol=5e-3)


def test_text_is_dropped_at_its_rate_and_whole():
    count = 4000
    batch = {"image": np.zeros((count, 2, 2, 1), np.uint8), **texts(np.ones(count))}
    fed = lambda train: fed_in_training(  # noqa: E731
        batch, train=train, size=2, conditioners={"text": {"dim": 2, "drop": 0.25}}
    )[2]["text"]
    given = fed(True)
    gone = ~np.asarray(given["mask"]).any(-1)
    assert gone.mean() == pytest.approx(0.25, abs=0.03)
    assert not np.asarray(given["tokens"])[gone].any() and np.asarray(given["tokens"])[~gone].all(0)[0, 1]
    kept = fed(False)
    assert np.asarray(kept["mask"])[:, 0].all() and kept["tokens"].dtype == jnp.float32


def test_the_text_of_each_image_is_its_own():
    """A loss of 0 without dropping."""
    images, system = np.array([0, 128, 255, 64]), make_text()
    batch = {"image": np.broadcast_to(images[:, None, None, None], (4, 8, 8, 1)).astype(np.uint8)} | texts(images / 127.5 - 1)
    assert float(loss_of(system, NO_PARAMS, batch, KEY, train=False)[0]) < 1e-4
    assert float(loss_of(system, NO_PARAMS, {**batch, **texts([0.3] * 4)}, KEY, train=False)[0]) > 0.1


def test_a_given_pooled_vector_goes_with_its_text():
    """It is dropped with it, guidance leads away from zeros or from the negative one, and it has a width of its own."""
    value = lambda x, noise, cond: cond["text"]["pooled"].sum(-1)[:, None, None, None] + 0 * x  # noqa: E731
    system = make_text(value, pooled_dim=3, drop=0.25)
    pooled = lambda numbers: np.array(numbers)[:, None] * np.array([[2.0, 0.0, -1.0]], np.float16)  # noqa: E731
    request = {**texts([9, 9]), "text_pooled": pooled([0.2, -0.1])}
    check_request(system, request)
    np.testing.assert_allclose(draw(system, request, guidance=3.0), [0.6, -0.3], atol=5e-3)
    against = {**request, **texts([8, 8], "negative_text"), "negative_text_pooled": pooled([0.1, 0.1])}
    check_request(system, against)
    np.testing.assert_allclose(draw(system, against, guidance=3.0), [0.4, -0.5], atol=5e-3)
    batch = {"image": np.zeros((400, 2, 2, 1), np.uint8), **texts(np.ones(400)), "text_pooled": pooled(np.ones(400))}
    text = {"dim": 2, "pooled_dim": 3, "drop": 0.25}
    given = fed_in_training(batch, size=2, conditioners={"text": text})[2]["text"]
    gone = ~np.asarray(given["mask"]).any(-1)
    assert 50 < gone.sum() < 150 and not np.asarray(given["pooled"])[gone].any() and np.asarray(given["pooled"])[~gone, 0].all()
    assert request_of(system, batch).keys() == {"text", "text_mask", "text_pooled"}
    with pytest.raises(ConfigError, match="a request needs 'text_pooled'"):
        check_request(system, texts([9, 9]))
    with pytest.raises(ConfigError, match=r"'text_pooled' has the shape \(2, 2\), .*, pooled vectors \[N, 3\]"):
        check_request(system, {**request, "text_pooled": np.zeros((2, 2))})


def test_errors_name_the_text():
    with pytest.raises(ConfigError, match="drop > 0"):
        make_text(drop=0.0).check_sampling(Sampling(guidance=2.0))
    with pytest.raises(ConfigError, match=r"texts are \[N, L, 2\]"):
        check_request(make_text(), {**texts([1.0]), "text": np.zeros((1, 2, 3))})
    with pytest.raises(ConfigError, match="'negative_text_mask'"):
        check_request(make_text(), {**texts([1.0]), "negative_text": np.zeros((1, 2, 2))})
    with pytest.raises(ConfigError, match="no text embeddings"):
        make_text().check(data.from_config({"source": "digits", "image_size": 8, "channels": 1, "batch_size": 4}))
    with pytest.raises(ConfigError, match="must be a whole number at least"):
        make_text(length=0)
