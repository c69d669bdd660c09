"""The noisy classifier as a system: its loss, its accuracy by noise level, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_jax.evaluation.held_out import accuracy_by_time

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import Cascade, Stage
from diffusion_jax.inference.cascade import Guided
from diffusion_jax.process import Process
from diffusion_jax.systems import Generation, NoisyClassifier, Sampling
from diffusion_jax.systems.noisy_classifier import quarter_of, right, same_noise
from tests.tiny_systems import PROCESS, FunctionNetwork, make_generation, randomize, start

TINY = {"name": "unet_classifier", "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (),
        "head_channels": 8, "groups": 4}  # fmt: skip
KEY = jax.random.key(0)


def make_classifier(**fields) -> NoisyClassifier:
    return NoisyClassifier(**{"image_size": 8, "channels": 1, "process": PROCESS, "network": TINY, "num_classes": 4, **fields})


def _function(function, classes=4, **fields) -> NoisyClassifier:
    return make_classifier(network=FunctionNetwork(function, (8, 8, 1)), num_classes=classes, **fields)


def _batch(count: int, classes: int = 4) -> dict[str, np.ndarray]:
    labels = (np.arange(count) % classes).astype(np.int32)
    return {"image": np.zeros((count, 8, 8, 1), np.uint8), "label": labels}


def test_a_classifier_that_knows_nothing_loses_log_of_the_number_of_classes():
    system = _function(lambda x, noise, cond: jnp.zeros((x.shape[0], 4)))
    loss, (state, seen) = system.loss({}, system.init_state(), _batch(12), KEY)
    assert float(loss) == pytest.approx(np.log(4), rel=1e-6)
    np.testing.assert_allclose(seen["per_example"], np.log(4), rtol=1e-6)
    assert seen["log_snr"].shape == (12,) and float(state["seen"].sum()) == 12


def test_the_log_has_the_accuracy_of_each_quarter_of_t():
    """Right while 1000 t <= 500, class 0 above it: a quarter of the labels are right by chance."""
    labels = jnp.asarray(_batch(4000)["label"])
    logits = lambda x, noise, cond: jnp.where(noise[:, None] <= 500, jax.nn.one_hot(labels, 4), jax.nn.one_hot(0 * labels, 4))  # noqa: E731
    system = _function(logits)
    assert system.report(jax.device_get(system.init_state())) == {}
    _, (state, _) = system.loss({}, system.init_state(), _batch(4000), KEY)
    report = system.report(jax.device_get(state))
    assert list(report)[:2] == ["accuracy_top1/t_0_to_0.25", "accuracy_top1/t_0.25_to_0.5"] and len(report) == 8
    assert [report[name] for name in list(report)[:2]] == [1.0, 1.0]
    assert report["accuracy_top1/t_0.5_to_0.75"] == pytest.approx(0.25, abs=0.04)
    assert report["accuracy_top5/t_0.75_to_1"] == 1.0  # four classes


def test_the_log_forgets_all_but_some_fifty_batches():
    """A constant stream of batches of 12 settles at the sum of fifty."""
    system = _function(lambda x, noise, cond: jnp.zeros((x.shape[0], 4)))
    state = {**system.init_state(), "seen": jnp.full(4, 150.0), "right": jnp.full((2, 4), 150.0)}
    _, (state, _) = system.loss({}, state, _batch(12), KEY)
    assert float(state["seen"].sum()) == pytest.approx(50 * 12, rel=1e-6)
    assert float(state["right"][0].sum()) == pytest.approx(50 * 12, rel=1e-6)  # no logit is above the label's


def test_biased_times_leave_the_loss_unbiased_and_learn_where_it_is_large():
    """Cross-entropy grows with t; drawn where it is large and weighted, its mean is that of uniform times."""
    logits = lambda x, noise, cond: jnp.stack([noise / 200, 0 * noise], -1)  # noqa: E731
    uniform, biased = (_function(logits, 2, times=times) for times in ("uniform", {"name": "importance", "num_bins": 20}))
    batch = {**_batch(20_000), "label": np.ones(20_000, np.int32)}
    state = biased.init_state()
    t = (np.arange(20) + 0.5) / 20
    state["times"] = {"losses": jnp.broadcast_to(jnp.asarray(5 * t)[:, None], (20, 10)), "count": jnp.full(20, 10)}
    found, (after, seen) = biased.loss({}, state, batch, KEY)
    expected = np.logaddexp(0, 5 * np.linspace(0, 1, 2001)).mean()  # log(1 + exp(5 t)) over t
    assert float(found) == pytest.approx(expected, rel=0.02)
    assert float(uniform.loss({}, uniform.init_state(), batch, KEY)[0]) == pytest.approx(expected, rel=0.02)
    assert float(seen["per_example"].mean()) > 1.1 * expected
    assert int(after["times"]["count"].sum()) == 200 + 20_000


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


def test_evaluation_gives_accuracy_by_time_on_held_out_images():
    pipeline = data.from_config({"source": "digits", "image_size": 8, "channels": 1, "batch_size": 8}, split="test")
    system = _function(lambda x, noise, cond: jnp.where(noise[:, None] < 1000, 1.0, 1.0) * jnp.eye(10)[3], classes=10)
    found = accuracy_by_time(system, {}, pipeline, limit=100, batch_size=32)
    labels = next(pipeline.one_pass(100))["label"]
    assert found["accuracy_top1"] == pytest.approx((labels == 3).mean())
    assert found["accuracy_top1_t_0.25_to_0.5"] == found["accuracy_top1"] and len(found) == 10


def test_it_learns_and_its_gradient_is_of_the_image():
    system = make_classifier(num_classes=2)
    rng = np.random.default_rng(0)
    label = (np.arange(32) % 2).astype(np.int32)
    image = np.where(label[:, None, None, None], 200, 50) + rng.integers(-20, 20, (32, 8, 8, 1))
    batch = {"image": image.astype(np.uint8), "label": label}
    params, state = start(system), system.init_state()

    @jax.jit
    def step(params, state, key):
        (loss, (state, _)), gradient = jax.value_and_grad(system.loss, has_aux=True)(params, state, batch, key)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), state, loss

    losses = []
    for number in range(60):
        params, state, loss = step(params, state, jax.random.key(number))
        losses.append(float(loss))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    assert system.report(jax.device_get(state))["accuracy_top1/t_0_to_0.25"] > 0.8


def test_guidance_through_a_cascade_keeps_every_bit_at_scale_0_and_pulls_above_it():
    model, classifier = make_generation(num_classes=0), make_classifier()
    weights = Guided(randomize(start(model), 0.1), randomize(start(classifier), 0.5))
    request, indices = {"label": jnp.array([0, 1, 2, 3])}, jnp.arange(4)

    def draw(scale, **more):
        stage = Stage(model, Sampling(solver="ddpm", steps=4, classifier_scale=scale), classifier)
        return jax.jit(lambda key: Cascade([stage]).sample([weights], key, request, indices)[0])(KEY)

    plain = Cascade([Stage(model, Sampling(solver="ddpm", steps=4))])
    alone = jax.jit(lambda key: plain.sample([weights.network], key, {}, indices)[0])(KEY)
    np.testing.assert_array_equal(draw(0.0), alone)
    score = lambda images: classifier.log_prob(weights.classifier, request["label"], model.process)(images, jnp.full(4, 0.05))  # noqa: E731
    assert (score(draw(3.0)) - score(alone)).mean() > 0.05


def test_what_does_not_fit_is_refused():
    model, classifier = make_generation(num_classes=0), make_classifier()
    with pytest.raises(ConfigError, match="num_classes must be at least 2"):
        make_classifier(num_classes=1)
    with pytest.raises(ConfigError, match="draws no images.*--classifier=WORKDIR"):
        classifier.sample({}, KEY, {}, jnp.arange(2), Sampling())
    guided = Cascade([Stage(model, Sampling(), classifier)])
    assert guided.num_classes == 4  # labels for an unconditional model
    with pytest.raises(ConfigError, match="a request needs 'label'"):
        guided.check_request({})
    with pytest.raises(ConfigError, match="label 4 is out of range: the model has 4 classes"):
        guided.check_request({"label": np.array([0, 4])})
    with pytest.raises(ConfigError, match=r"images of the shape \(8, 8, 1\), but the model draws \(16, 16, 1\)"):
        Cascade([Stage(make_generation(image_size=16), Sampling(), classifier)])
    with pytest.raises(ConfigError, match=r"different numbers of classes: \[4, 5\]"):
        Cascade([Stage(make_generation(num_classes=5), Sampling(), classifier)])
    with pytest.raises(ConfigError, match="classifier_scale must not be negative"):
        Sampling(classifier_scale=-1.0)
    pipeline = data.from_config({"source": "digits", "image_size": 8, "channels": 1, "batch_size": 8})
    with pytest.raises(ConfigError, match="the data have 10 classes, the system num_classes=4"):
        classifier.check(pipeline)


# Classifier-free guidance: conventions and negative labels ---------------------------------------------------------------


def test_the_two_conventions_of_the_scale():
    assert Sampling(guidance_weight=0.3).guidance == pytest.approx(1.3) and Sampling(guidance_weight=0).guidance == 1
    assert Sampling.from_config({"guidance": 2.0}, guidance_weight=0.5).guidance == 1.5
    assert Sampling.from_config({"guidance_weight": 0.5}, guidance=3.0).guidance == 3.0
    again = Sampling.from_config(Sampling(guidance_weight=1.0))
    assert again.guidance == 2.0 and again.settings()["guidance_weight"] is None
    with pytest.raises(ConfigError, match="guidance 2 and guidance_weight 3 say the same thing"):
        Sampling(guidance=2.0, guidance_weight=3.0)


def _counting(calls: list) -> Generation:
    """A class model whose x0 is label / 10, and 0.9 where there is none (class 4); it notes every evaluation."""

    def x0(x, noise, cond):
        jax.debug.callback(lambda label: calls.append(label), cond["label"])
        return jnp.where(cond["label"] == 4, 0.9, cond["label"] / 10)[:, None, None, None] + 0 * x

    network = FunctionNetwork(x0, (8, 8, 1), {"label": None})
    return make_generation(process={**PROCESS, "prediction": "x0"}, network=network)


@pytest.mark.parametrize(("scale", "evaluations"), [(1.0, 3), (2.0, 6)])
def test_scale_1_makes_no_evaluation_without_labels(scale, evaluations):
    calls: list = []
    model = _counting(calls)
    sampling = Sampling(solver="ddim", steps=3, guidance=scale, threshold="none")
    images = model.sample({}, KEY, {"label": jnp.array([1, 2])}, jnp.arange(2), sampling)
    jax.effects_barrier()
    assert len(calls) == evaluations
    np.testing.assert_allclose(images[:, 0, 0, 0], np.clip(0.9 + scale * (np.array([0.1, 0.2]) - 0.9), -1, 1), atol=1e-5)


def test_negative_labels_stand_where_no_label_would():
    model = _counting([])
    sampling = Sampling(solver="ddim", steps=3, guidance=2.0, threshold="none")
    request = {"label": jnp.array([1, 2]), "negative_label": jnp.array([3, 0])}
    images = model.sample({}, KEY, request, jnp.arange(2), sampling)
    np.testing.assert_allclose(images[:, 0, 0, 0], [0.3 + 2 * (0.1 - 0.3), 0 + 2 * 0.2], atol=1e-5)
    chain = Cascade([Stage(model, sampling)])
    with pytest.raises(ConfigError, match="label 4 is out of range"):
        chain.check_request({**request, "negative_label": np.array([4, 0])})
    with pytest.raises(ConfigError, match="set guidance above 1"):
        Cascade([Stage(model, Sampling())]).check_request(request)
