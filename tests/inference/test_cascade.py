"""Cascades: what each stage is fed, in closed form, and what does not chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import Cascade, Stage, StageParams
from diffusion_jax.process import schedules
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Diffusion, Sampling
from tests.tiny_systems import PROCESS, FunctionNetwork, gaussian_x0, make_generation, make_super_resolution

MEAN, STD, LEVEL = 0.3, 0.2, 0.3
NO_PARAMS = [StageParams({"network": {}})] * 2


def _echo_cascade(schedule, base: dict, later: dict) -> Cascade:
    """An exact base of Gaussian pixels, and a second stage that shows a tenth of what it is fed."""
    generation = Diffusion(
        spec=Spec.image(4, 1),
        process={"schedule": schedule, "prediction": "x0", "noise_input": "rescaled_timestep"},
        network=FunctionNetwork(gaussian_x0(MEAN, STD, schedule), (4, 4, 1)),
    )

    def echo(x, noise, cond):
        return 0.1 * jax.image.resize(cond["low_res"], x.shape, "nearest")

    network = FunctionNetwork(echo, (8, 8, 1), {"low_res": None, "aug_level": None})
    after = Diffusion(
        spec=Spec.image(8, 1),
        process={**PROCESS, "prediction": "x0"},
        network=network,
        conditioners={"low_res": {"size": 4}},
    )
    return Cascade([Stage(generation, Sampling(threshold="none", **base)), Stage(after, Sampling(steps=2, **later))])


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("schedule", [schedules.cosine_continuous(), schedules.edm()], ids=["vp", "ve"])
def test_the_later_stage_sees_base_images_at_its_augmentation_level(schedule, truncated):
    cascade = _echo_cascade(
        schedule,
        {"solver": "dpmpp_2m", "steps": 60, "grid": "karras"},
        {"aug_level": LEVEL, "truncated": truncated},
    )
    images = cascade.sample(NO_PARAMS, jax.random.key(0), {}, jnp.arange(600))
    fed = 10 * np.asarray(images[1])[:, ::2, ::2]
    alpha, sigma = np.cos(LEVEL * np.pi / 2), np.sin(LEVEL * np.pi / 2)
    assert fed.mean() == pytest.approx(alpha * MEAN, abs=0.02)
    assert fed.std() == pytest.approx(np.hypot(alpha * STD, sigma), rel=0.03)
    if not truncated:
        assert np.asarray(images[0]).std() == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize("truncated", [True, False])
def test_the_level_is_that_of_the_schedule_that_the_base_is_sampled_on(truncated):
    """An exact base on a schedule that is not the trained one: the linear chain's continuous limit."""
    trained, own = schedules.cosine_continuous(), schedules.vp_sde()
    generation = Diffusion(
        spec=Spec.image(4, 1), process={"schedule": trained, "prediction": "x0", "noise_input": "sqrt_gamma"},
        network=FunctionNetwork(_x0_of_alpha, (4, 4, 1)),
    )  # fmt: skip
    after = _echo_cascade(trained, {}, {"aug_level": LEVEL, "truncated": truncated}).stages[1]
    sampling = Sampling(solver="dpmpp_2m", steps=60, grid="karras", threshold="none", schedule=own)
    images = Cascade([Stage(generation, sampling), after]).sample(NO_PARAMS, jax.random.key(0), {}, jnp.arange(600))
    fed = 10 * np.asarray(images[1])[:, ::2, ::2]
    alpha, sigma = np.cos(LEVEL * np.pi / 2), np.sin(LEVEL * np.pi / 2)
    assert fed.mean() == pytest.approx(alpha * MEAN, abs=0.02)
    assert fed.std() == pytest.approx(np.hypot(alpha * STD, sigma), rel=0.03)


def _x0_of_alpha(x, noise, cond):
    """E[x0 | x_t] of the Gaussian pixels, for a network that is told 1000 alpha."""
    alpha = (noise / 1000)[:, None, None, None]
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + 1 - alpha**2) * (x - alpha * MEAN)


def test_at_level_0_both_modes_feed_the_finished_image():
    base = {"solver": "ddim", "steps": 5}
    for truncated in (True, False):
        cascade = _echo_cascade(schedules.cosine_continuous(), base, {"truncated": truncated})
        first, second = cascade.sample(NO_PARAMS, jax.random.key(0), {}, jnp.arange(4))
        np.testing.assert_allclose(10 * second[:, ::2, ::2], first, atol=1e-6)


def test_images_can_be_handed_on_as_bytes():
    cascade = _echo_cascade(schedules.cosine_continuous(), {"steps": 5}, {"quantize": True})
    first, second = cascade.sample(NO_PARAMS, jax.random.key(0), {}, jnp.arange(4))
    levels = (10 * np.asarray(second) + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert np.abs(10 * second[:, ::2, ::2] - first).max() <= 1.001 / 255


def test_every_stage_of_a_sample_is_a_function_of_its_index():
    cascade = _echo_cascade(schedules.cosine_continuous(), {"solver": "ddpm", "steps": 3}, {"aug_level": LEVEL})
    draw = jax.jit(lambda indices: cascade.sample(NO_PARAMS, jax.random.key(0), {}, indices))
    order = np.array([3, 0, 2, 1])
    in_turn, shuffled = draw(jnp.arange(4)), draw(jnp.asarray(order))
    assert [images.shape for images in in_turn] == [(4, 4, 4, 1), (4, 8, 8, 1)]
    for first, second in zip(in_turn, shuffled, strict=True):
        np.testing.assert_allclose(first[order], second, atol=1e-6)
        assert jnp.abs(first[0] - first[1]).max() > 0.01


def test_what_does_not_chain_is_refused():
    base, later, sampling = make_generation(), make_super_resolution(), Sampling(steps=2)
    with pytest.raises(ConfigError, match="at least one stage"):
        Cascade([])
    with pytest.raises(ConfigError, match=r"draws images of the shape \(16, 16, 1\), but stage 2 takes"):
        Cascade([Stage(make_generation(16), sampling), Stage(later, sampling)])
    with pytest.raises(ConfigError, match="must be conditioned on 'low_res'"):
        Cascade([Stage(base, sampling), Stage(base, sampling)])
    with pytest.raises(ConfigError, match="disagree on their labels: 4 classes and 5 classes"):
        Cascade([Stage(base, sampling), Stage(make_super_resolution(labels={"num_classes": 5}), sampling)])
    with pytest.raises(ConfigError, match="lower aug_level"):
        Cascade([Stage(base, sampling), Stage(later, Sampling(aug_level=1.0, truncated=True))])
    with pytest.raises(ConfigError, match="guidance 2 on an unconditional model"):
        Cascade([Stage(make_generation(labels=None), Sampling(guidance=2.0)), Stage(later, sampling)])


def test_labels_are_wanted_where_any_stage_has_classes():
    cascade = Cascade([Stage(make_generation(labels=None), Sampling()), Stage(make_super_resolution(), Sampling())])
    assert [each.name for each in cascade.conditioners] == ["labels"]
    with pytest.raises(ConfigError, match="needs 'label'"):
        cascade.check_request({})
