"""The noisy classifier as a system: its loss, its accuracy by noise level, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.spec import Spec
from diffusion_jax.systems import NoisyClassifier, Samples, ability
from diffusion_jax.systems.noisy_classifier import quarter_of, right, same_noise
from tests.tiny_systems import NO_PARAMS, PROCESS, FunctionNetwork, loss_of, start

TINY = {"name": "unet_classifier", "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (),
        "head_channels": 8, "groups": 4}  # fmt: skip
KEY = jax.random.key(0)


def make_classifier(**fields) -> NoisyClassifier:
    return NoisyClassifier(**{"spec": Spec.image(8, 1), "process": PROCESS, "network": TINY, "num_classes": 4, **fields})


def _function(function, classes=4, **fields) -> NoisyClassifier:
    return make_classifier(network=FunctionNetwork(function, (8, 8, 1)), num_classes=classes, **fields)


def _batch(count: int, classes: int = 4) -> dict[str, np.ndarray]:
    labels = (np.arange(count) % classes).astype(np.int32)
    return {"image": np.zeros((count, 8, 8, 1), np.uint8), "label": labels}


def test_a_classifier_that_knows_nothing_loses_log_of_the_number_of_classes():
    system = _function(lambda x, noise, cond: jnp.zeros((x.shape[0], 4)))
    loss, seen = loss_of(system, NO_PARAMS, _batch(12), KEY)
    assert float(loss) == pytest.approx(np.log(4), rel=1e-6)
    np.testing.assert_allclose(seen["per_example"], np.log(4), rtol=1e-6)
    assert seen["log_snr"].shape == (12,) and float(seen["state"]["seen"].sum()) == 12


def test_the_log_has_the_accuracy_of_each_quarter_of_t():
    """Right while 1000 t <= 500, class 0 above it: a quarter of the labels are right by chance."""
    labels = jnp.asarray(_batch(4000)["label"])
    logits = lambda x, noise, cond: jnp.where(noise[:, None] <= 500, jax.nn.one_hot(labels, 4), jax.nn.one_hot(0 * labels, 4))  # noqa: E731
    system = _function(logits)
    assert system.report(jax.device_get(system.init_state())) == {}
    report = system.report(jax.device_get(loss_of(system, NO_PARAMS, _batch(4000), KEY)[1]["state"]))
    assert list(report)[:2] == ["accuracy_top1/t_0_to_0.25", "accuracy_top1/t_0.25_to_0.5"] and len(report) == 8
    assert [report[name] for name in list(report)[:2]] == [1.0, 1.0]
    assert report["accuracy_top1/t_0.5_to_0.75"] == pytest.approx(0.25, abs=0.04)
    assert report["accuracy_top5/t_0.75_to_1"] == 1.0  # four classes


def test_the_log_forgets_all_but_some_fifty_batches():
    """A constant stream of batches of 12 settles at the sum of fifty."""
    system = _function(lambda x, noise, cond: jnp.zeros((x.shape[0], 4)))
    state = {**system.init_state(), "seen": jnp.full(4, 150.0), "right": jnp.full((2, 4), 150.0)}
    state = loss_of(system, NO_PARAMS, _batch(12), KEY, state=state)[1]["state"]
    assert float(state["seen"].sum()) == pytest.approx(50 * 12, rel=1e-6)
    assert float(state["right"][0].sum()) == pytest.approx(50 * 12, rel=1e-6)  # no logit is above the label's


@pytest.mark.slow
def test_biased_times_leave_the_loss_unbiased_and_learn_where_it_is_large():
    """Cross-entropy grows with t; drawn where it is large and weighted, its mean is that of uniform times."""
    logits = lambda x, noise, cond: jnp.stack([noise / 200, 0 * noise], -1)  # noqa: E731
    uniform, biased = (_function(logits, 2, times=times) for times in ("uniform", {"name": "importance", "num_bins": 20}))
    batch = {**_batch(20_000), "label": np.ones(20_000, np.int32)}
    state = biased.init_state()
    t = (np.arange(20) + 0.5) / 20
    state["times"] = {"losses": jnp.broadcast_to(jnp.asarray(5 * t)[:, None], (20, 10)), "count": jnp.full(20, 10)}
    found, seen = loss_of(biased, NO_PARAMS, batch, KEY, state=state)
    expected = np.logaddexp(0, 5 * np.linspace(0, 1, 2001)).mean()  # log(1 + exp(5 t)) over t
    assert float(found) == pytest.approx(expected, rel=0.02)
    assert float(loss_of(uniform, NO_PARAMS, batch, KEY)[0]) == pytest.approx(expected, rel=0.02)
    assert float(seen["per_example"].mean()) > 1.1 * expected
    assert int(seen["state"]["times"]["count"].sum()) == 200 + 20_000


def test_times_fall_into_quarters():
    assert quarter_of(jnp.array([1e-4, 0.25, 0.2501, 0.5, 0.75, 0.7502, 1.0])).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_processes_with_the_same_noise_agree_in_family_steps_and_levels():
    process = Process("cosine_continuous")
    assert same_noise(process, Process("cosine_continuous", "x0"))
    for changed in ({"family": "linear"}, {"num_steps": 20}, {"log_snr": lambda t: process.schedule.log_snr(t) + 0.1}):
        assert not same_noise(process, Process(dataclasses.replace(process.schedule, **changed)))


def test_top_5_counts_who_is_among_the_first_five():
    logits = jnp.asarray(np.tile(np.arange(10.0)[::-1], (10, 1)))  # class 0 first, class 9 last
    first, five = right(logits, jnp.arange(10))
    assert first.tolist() == [1] + [0] * 9 and five.tolist() == [1] * 5 + [0] * 5


@pytest.mark.slow
def test_it_learns_and_its_gradient_is_of_the_image():
    system = make_classifier(num_classes=2)
    rng = np.random.default_rng(0)
    label = (np.arange(32) % 2).astype(np.int32)
    image = np.where(label[:, None, None, None], 200, 50) + rng.integers(-20, 20, (32, 8, 8, 1))
    batch = {"image": image.astype(np.uint8), "label": label}
    params, state = start(system), system.init_state()

    @jax.jit
    def step(params, state, key):
        value = lambda params: loss_of(system, params, batch, key, state=state)  # noqa: E731
        (loss, aux), gradient = jax.value_and_grad(value, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), aux["state"], loss

    losses = []
    for number in range(60):
        params, state, loss = step(params, state, jax.random.key(number))
        losses.append(float(loss))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    assert system.report(jax.device_get(state))["accuracy_top1/t_0_to_0.25"] > 0.8


def test_what_does_not_fit_is_refused():
    classifier = make_classifier()
    with pytest.raises(ConfigError, match="num_classes must be at least 2"):
        make_classifier(num_classes=1)
    with pytest.raises(ConfigError, match="NoisyClassifier, which draws nothing.*--classifier=WORKDIR"):
        ability(classifier, Samples)
    pipeline = data.from_config({"source": "digits", "image_size": 8, "channels": 1, "batch_size": 8})
    with pytest.raises(ConfigError, match="the data have 10 classes, the system num_classes=4"):
        classifier.check(pipeline)
