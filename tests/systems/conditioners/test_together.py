"""Conditioners together: what is dropped together, and all of configs/conditioned.py at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import conditioned
from diffusion_jax import data, systems
from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Sampling, check_request, request_of, to_uint8
from diffusion_jax.training.config import complete
from tests.tiny_systems import fed_in_training, loss_of, make_batch, make_function, make_generation, randomize, start

KEY = jax.random.key(0)


def _dropped(labels: float, text: float, vector: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether label, text and vector of each of 4,000 examples were dropped."""
    count = 4000
    batch = {
        "image": np.zeros((count, 2, 2, 1), np.uint8), "label": np.ones(count, np.int32), "numbers": np.ones((count, 1)),
        "text": np.ones((count, 1, 1)), "text_mask": np.ones((count, 1), bool),
    }  # fmt: skip
    conditioners = {
        "labels": {"num_classes": 3, "drop": labels}, "text": {"dim": 1, "drop": text},
        "vector": {"key": "numbers", "dim": 1, "drop": vector},
    }  # fmt: skip
    cond = fed_in_training(batch, size=2, conditioners=conditioners)[2]
    return np.asarray(cond["label"]) == 3, ~np.asarray(cond["text"]["mask"])[:, 0], np.asarray(cond["numbers"])[:, 0] == 0


def test_conditioners_of_equal_probability_are_dropped_together_and_others_nested():
    label, text, vector = _dropped(0.2, 0.2)
    np.testing.assert_array_equal(label, text)
    assert label.mean() == pytest.approx(0.2, abs=0.03) and not vector.any()
    label, text, vector = _dropped(0.1, 0.3, 0.5)
    for rare, often, rate in ((label, text, 0.1), (text, vector, 0.3)):
        assert not (rare & ~often).any() and rare.mean() == pytest.approx(rate, abs=0.03)


def test_guidance_keeps_what_is_never_dropped():
    """x0 is the label's value plus the vector's: the null lacks the label alone."""

    def x0(x, noise, cond):
        value = jnp.where(cond["label"] == 3, 0.0, cond["label"] / 10) + cond["text"]["tokens"].sum((1, 2))
        return value[:, None, None, None] + 0 * x

    conditioners = {"labels": {"num_classes": 3}, "text": {"dim": 1, "drop": 0.0}}
    system = make_function(x0, conditioners=conditioners, process={"schedule": "cosine_continuous", "prediction": "x0"})
    request = {"label": np.array([1, 2]), "text": np.full((2, 1, 1), 0.2), "text_mask": np.ones((2, 1), bool)}
    draw = lambda params: system.sample(  # noqa: E731
        params, KEY, request, jnp.arange(2), Sampling(steps=2, guidance=2.0, threshold="none")
    )
    np.testing.assert_allclose(draw({"network": {}})[:, 0, 0, 0], [0.4, 0.6], atol=5e-3)


@pytest.mark.slow
def test_class_text_low_resolution_image_and_mask_train_and_sample_together():
    config = complete(conditioned.get_config("tiny").to_dict())
    config["system"]["network"].update(channels=4, groups=2, multipliers=(1,), attention_resolutions=(16,))
    system = systems.from_config(config)
    assert {each.name for each in system.conditioners} == {"labels", "text", "low_res", "image"}
    pipeline = data.from_config(config["data"])
    system.check(pipeline)
    batch = {name: value[:4] for name, value in data.numeric(pipeline.batch(0)).items()}
    params = randomize(start(system))

    @jax.jit
    def gradient(network, batch, key):
        return jax.grad(lambda network: loss_of(system, {"network": network}, batch, key)[0])(network)

    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient(params["network"], batch, KEY)))
    request = {name: np.asarray(value) for name, value in request_of(system, batch).items()}
    assert set(request) == {"label", "text", "text_mask", "low_res", "degraded", "missing", "task"}
    check_request(system, request)
    sampling = Sampling(solver="ddim", steps=2, guidance=2.0, aug_level=0.1)
    draw = jax.jit(lambda params, request: system.sample(params, KEY, request, jnp.arange(4), sampling))
    samples = draw(params, request)
    missing = np.broadcast_to(request["missing"] > 127, samples.shape)
    assert missing.any() and not missing.all()
    made = np.asarray(to_uint8(samples))
    np.testing.assert_array_equal(made[~missing], request["degraded"][~missing])
    assert (made[missing] != batch["image"][missing]).mean() > 0.9
    # The other three make a difference.
    for name, value in {"label": (request["label"] + 1) % 3, **{key: 1 - request[key] for key in ("text", "low_res")}}.items():
        assert np.abs(draw(params, {**request, name: value}) - samples)[missing].max() > 1e-3, name


def test_two_conditioners_of_one_key_are_refused():
    twice = [{"name": "labels", "num_classes": 4}, {"name": "labels", "num_classes": 3}]
    with pytest.raises(ConfigError, match="two of them fill the conditioning 'label'"):
        make_function(conditioners=twice)
    batch, image = make_batch(8), {"name": "image", "feed_mask": True}
    batch |= {"degraded": batch["image"], "missing": np.zeros((8, 8, 8, 1), np.uint8)}
    with pytest.raises(ConfigError, match="two of them fill the conditioning 'image'|'mask'"):
        make_function(conditioners=[image, image])
    # Two of a kind with keys of their own are welcome.
    numbers = {"numbers": np.ones((8, 2)), "sizes": np.ones((8, 3))}
    vectors = [{"name": "vector", "key": key, "dim": value.shape[1]} for key, value in numbers.items()]
    assert set(fed_in_training({**batch, **numbers}, conditioners=vectors)[2]) == set(numbers)


def test_unknown_conditioners_are_named():
    with pytest.raises(ConfigError, match="unknown conditioner 'label'; did you mean 'labels'"):
        make_generation(more={"label": {"num_classes": 4}})
    with pytest.raises(ConfigError, match="conditioner 'labels' has no field 'dorp'; did you mean 'drop'"):
        make_generation(more={"labels": {"num_classes": 4, "dorp": 0.1}})
