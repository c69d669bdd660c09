"""Cascades by what is handed on: texts to every stage, enlargements on any list of betas, the gradient of a classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import Cascade, Stage, StageParams
from diffusion_jax.spec import Spec
from diffusion_jax.systems import NoisyClassifier, Sampling
from tests.tiny_systems import NO_PARAMS, PROCESS, make_function, make_generation, randomize, start

KEY = jax.random.key(0)
TEXT_UNET = {
    "name": "efficient_unet", "channels": 8, "groups": 4, "num_heads": 2, "multipliers": (1,), "num_res_blocks": (1,),
    "strides": (1,), "self_attention": (False,), "text_attention": (True,),
}  # fmt: skip
CLASSIFIER = {"name": "unet_classifier", "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (),
              "head_channels": 8, "groups": 4}  # fmt: skip


@pytest.mark.slow
def test_three_stages_hand_the_text_on():
    """Base 8, then 16, then 32 by a network trained on crops; the text reaches every stage."""

    def sum_of_tokens(x, noise, cond):
        value = (cond["text"]["tokens"] * cond["text"]["mask"][..., None]).sum((1, 2))
        return jnp.broadcast_to(value[:, None, None, None], x.shape)

    text = {"dim": 2, "length": 2}
    base = make_function(sum_of_tokens, conditioners={"text": text}, process={**PROCESS, "prediction": "x0"})
    first, second = (
        make_generation(size, labels=None, network=TEXT_UNET, more={"text": text, "low_res": low_res})
        for size, low_res in ((16, {"size": 8}), (32, {"size": 16, "crop_size": 16}))
    )
    sampling = Sampling(solver="ddim", steps=2, aug_level=0.1)
    cascade = Cascade([Stage(base, Sampling(solver="ddim", steps=2)), Stage(first, sampling), Stage(second, sampling)])
    assert cascade.spec == Spec((32, 32, 1))
    params = [StageParams(each) for each in (NO_PARAMS, *(randomize(start(system)) for system in (first, second)))]
    run = jax.jit(lambda request: cascade.sample(params, KEY, request, jnp.arange(2)))
    tokens = np.zeros((2, 2, 2), np.float16)
    tokens[:, 0, 1], tokens[:, 1] = [0.5, -0.5], 9
    request = {"text": tokens, "text_mask": np.tile([True, False], (2, 1))}
    cascade.check_request(request)
    drawn = run(request)
    assert [stage.shape for stage in drawn] == [(2, 8, 8, 1), (2, 16, 16, 1), (2, 32, 32, 1)]
    # Only what the base says of it is the same for both orders of the token's features: later stages see the text itself.
    other = run({**request, "text": tokens[..., ::-1].copy()})
    np.testing.assert_array_equal(drawn[0], other[0])
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(drawn[1:], other[1:], strict=True))
    with pytest.raises(ConfigError, match="a request needs 'text'"):
        cascade.check_request({})


def test_a_cascade_of_two_enlargements():
    """Each network answers with its enlarged low-resolution image; the schedule is not the trained one."""

    def enlarging(x, noise, cond):
        clean = jax.image.resize(cond["low_res"], x.shape, "bicubic")
        alpha = (noise / 1000)[:, None, None, None]
        return (x - alpha * clean) / jnp.sqrt(1 - alpha**2)

    process = {"schedule": {"name": "linear", "num_steps": 2000}, "variance": "fixed_large", "noise_input": "sqrt_gamma"}
    systems = [
        make_function(enlarging, size, process=process, conditioners={"low_res": {"size": size // 4, "aug_schedule": None}})
        for size in (16, 64)
    ]
    schedule = {"name": "quadratic", "num_steps": 10, "beta_start": 1e-6, "beta_end": 0.98}
    cascade = Cascade([Stage(system, Sampling(solver="ddpm", steps=10, schedule=schedule)) for system in systems])
    low_res = np.full((2, 4, 4, 1), 200, np.uint8)
    small, large = cascade.sample([StageParams(NO_PARAMS)] * 2, KEY, {"low_res": low_res}, jnp.arange(2))
    assert small.shape == (2, 16, 16, 1) and large.shape == (2, 64, 64, 1)
    np.testing.assert_allclose(large, 200 / 127.5 - 1, atol=0.05)


def make_classifier(size: int = 8) -> NoisyClassifier:
    return NoisyClassifier(spec=Spec.image(size, 1), process=PROCESS, network=CLASSIFIER, num_classes=4)


@pytest.mark.slow
def test_a_classifiers_guidance_keeps_every_bit_at_scale_0_and_pulls_above_it():
    model, classifier = make_generation(labels=None), make_classifier()
    params = StageParams(randomize(start(model), 0.1), randomize(start(classifier), 0.5))
    request, indices = {"label": jnp.array([0, 1, 2, 3])}, jnp.arange(4)

    def draw(scale, **more):
        stage = Stage(model, Sampling(solver="ddpm", steps=4, classifier_scale=scale), **more)
        return jax.jit(lambda key: Cascade([stage]).sample([params], key, request, indices)[0])(KEY)

    alone, unguided, guided = draw(1.0), draw(0.0, classifier=classifier), draw(3.0, classifier=classifier)
    np.testing.assert_array_equal(unguided, alone)
    score = classifier.log_prob(params.classifier, request["label"], model.process)
    assert (score(guided, jnp.full(4, 0.05)) - score(alone, jnp.full(4, 0.05))).mean() > 0.05


def test_classifiers_and_labels_that_do_not_fit_are_refused():
    model, classifier = make_generation(labels=None), make_classifier()
    guided = Cascade([Stage(model, Sampling(), classifier)])
    assert [each.meaning for each in guided.conditioners] == ["4 classes"]  # labels for an unconditional model
    with pytest.raises(ConfigError, match="a request needs 'label'"):
        guided.check_request({})
    with pytest.raises(ConfigError, match="label 4 is out of range: the model has 4 classes"):
        guided.check_request({"label": np.array([0, 4])})
    with pytest.raises(ConfigError, match="looks at data of 8x8x1 image, but the model draws 16x16x1 image"):
        Cascade([Stage(make_generation(16), Sampling(), classifier)])
    with pytest.raises(ConfigError, match="disagree on their labels: 4 classes and 5 classes"):
        Cascade([Stage(make_generation(labels={"num_classes": 5}), Sampling(), classifier)])
    labels = {"label": np.array([1]), "negative_label": np.array([2])}
    with pytest.raises(ConfigError, match="set guidance above 1"):
        Cascade([Stage(make_generation(), Sampling())]).check_request(labels)
