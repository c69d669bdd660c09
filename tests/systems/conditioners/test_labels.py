"""Class labels: dropped at their rate, guided away from no label or from another one, refused out of range."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Labels, Sampling, check_request
from tests.tiny_systems import NO_PARAMS, PROCESS, fed_in_training, make_function, make_generation, randomize, start

KEY = jax.random.key(0)


def _fed(drop: float, train: bool = True) -> np.ndarray:
    """The labels that a network is fed for 4,000 images of class 1 of 3."""
    batch = {"image": np.zeros((4000, 2, 2, 1), np.uint8), "label": np.ones(4000, np.int32)}
    conditioners = {"labels": {"num_classes": 3, "drop": drop}}
    return np.asarray(fed_in_training(batch, train=train, size=2, conditioners=conditioners)[2]["label"])


def test_labels_are_dropped_at_their_rate_in_training_only():
    fed = _fed(0.2)
    assert set(np.unique(fed)) == {1, 3}
    assert abs((fed == 3).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
    assert (_fed(0.2, train=False) == 1).all()
    assert (_fed(0.0) == 1).all() and (_fed(1.0) == 3).all()


def test_the_null_label_is_a_row_of_its_own():
    rows = lambda system: system.network.shapes()["label_embedding"]["embedding"].shape[0]  # noqa: E731
    assert rows(make_generation()) == 5
    assert rows(make_generation(labels={"num_classes": 4, "drop": 0.0})) == 4


def test_guidance_is_the_extrapolation_from_the_null_class():
    system = make_generation()
    params = randomize(start(system))
    x, t, indices = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.float32(0.5), jnp.arange(2)

    @jax.jit
    def predictions(label):
        denoise = lambda guidance: system.denoiser(  # noqa: E731
            params, KEY, {"label": label}, indices, Sampling(steps=1, guidance=guidance, threshold="none")
        )
        return denoise(1.0)(x, t).x0, denoise(3.0)(x, t).x0

    (plain, guided), (null, _) = predictions(jnp.array([1, 1])), predictions(jnp.array([4, 4]))  # 4: null, given by hand
    np.testing.assert_allclose(guided, null + 3 * (plain - null), atol=1e-4)
    assert jnp.abs(guided - plain).max() > 0.01


def _counting(calls: list):
    """A class model whose x0 is label / 10, and 0.9 where there is none (class 4); it notes every evaluation."""

    def x0(x, noise, cond):
        jax.debug.callback(lambda label: calls.append(label), cond["label"])
        return jnp.where(cond["label"] == 4, 0.9, cond["label"] / 10)[:, None, None, None] + 0 * x

    return make_function(x0, conditioners={"labels": {"num_classes": 4}}, process={**PROCESS, "prediction": "x0"})


@pytest.mark.parametrize(("scale", "evaluations"), [(1.0, 3), (2.0, 6)])
def test_scale_1_makes_no_evaluation_without_labels(scale, evaluations):
    calls: list = []
    sampling = Sampling(solver="ddim", steps=3, guidance=scale, threshold="none")
    images = _counting(calls).sample(NO_PARAMS, KEY, {"label": jnp.array([1, 2])}, jnp.arange(2), sampling)
    jax.effects_barrier()
    assert len(calls) == evaluations
    np.testing.assert_allclose(images[:, 0, 0, 0], np.clip(0.9 + scale * (np.array([0.1, 0.2]) - 0.9), -1, 1), atol=1e-5)


def test_negative_labels_take_the_place_of_no_label():
    system, sampling = _counting([]), Sampling(solver="ddim", steps=3, guidance=2.0, threshold="none")
    request = {"label": jnp.array([1, 2]), "negative_label": jnp.array([3, 0])}
    images = system.sample(NO_PARAMS, KEY, request, jnp.arange(2), sampling)
    np.testing.assert_allclose(images[:, 0, 0, 0], [0.3 + 2 * (0.1 - 0.3), 0 + 2 * 0.2], atol=1e-5)
    with pytest.raises(ConfigError, match="label 4 is out of range"):
        check_request(system, {**request, "negative_label": np.array([4, 0])})


def test_requests_and_fields_that_are_refused():
    labels = Labels(num_classes=4)
    with pytest.raises(ConfigError, match="label 4 is out of range: the model has 4 classes, 0 to 3"):
        labels.check_request({"label": np.array([0, 4])})
    with pytest.raises(ConfigError, match="needs 'label'"):
        labels.check_request({})
    with pytest.raises(ConfigError, match="'labels': drop must be a number in"):
        Labels(num_classes=4, drop=1.5)
    with pytest.raises(ConfigError, match="num_classes must be a whole number at least 1"):
        Labels(num_classes=0)
    with pytest.raises(ConfigError, match="conditioner 'labels' needs the field 'num_classes'"):
        make_generation(labels={})


def test_what_labels_say_of_themselves():
    labels = Labels(num_classes=3)
    assert labels.default()["label"].tolist() == [0, 1, 2]
    columns, num = labels.from_flags({"labels": "2-per-class", "negative_labels": "0,2"}, None)
    assert columns["label"].tolist() == [0, 0, 1, 1, 2, 2] and columns["negative_label"].tolist() == [0, 2] and num == 6
    assert labels.from_flags({}, None) == ({}, None)
