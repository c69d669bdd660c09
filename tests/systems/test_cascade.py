"""Cascades: what each stage is fed, in closed form, and what does not chain."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_systems import PROCESS, FunctionNetwork, gaussian_x0, make_generation, make_super_resolution, randomize

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import schedules
from diffusion_jax.systems import Cascade, Generation, Sampling, Stage, SuperResolution

MEAN, STD, LEVEL = 0.3, 0.2, 0.3


def _echo_cascade(schedule, base: dict, later: dict) -> Cascade:
    """An exact base of Gaussian pixels, and a second stage that shows a tenth of what it is fed."""
    generation = Generation(
        image_size=4,
        channels=1,
        process={"schedule": schedule, "prediction": "x0", "noise_input": "rescaled_timestep"},
        network=FunctionNetwork(gaussian_x0(MEAN, STD, schedule), (4, 4, 1)),
    )

    def echo(x, noise, cond):
        return 0.1 * jax.image.resize(cond["low_res"], x.shape, "nearest")

    network = FunctionNetwork(echo, (8, 8, 1), {"low_res": None, "aug_level": None})
    after = SuperResolution(
        image_size=8, channels=1, process={**PROCESS, "prediction": "x0"}, network=network, low_res_size=4
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
    images = cascade.sample([{}, {}], jax.random.key(0), {}, jnp.arange(600))
    fed = 10 * np.asarray(images[1])[:, ::2, ::2]
    alpha, sigma = np.cos(LEVEL * np.pi / 2), np.sin(LEVEL * np.pi / 2)
    assert fed.mean() == pytest.approx(alpha * MEAN, abs=0.02)
    assert fed.std() == pytest.approx(np.hypot(alpha * STD, sigma), rel=0.03)
    if not truncated:
        assert np.asarray(images[0]).std() == pytest.approx(STD, rel=0.05)


def test_at_level_0_both_modes_feed_the_finished_image():
    base = {"solver": "ddim", "steps": 5}
    for truncated in (True, False):
        cascade = _echo_cascade(schedules.cosine_continuous(), base, {"truncated": truncated})
        first, second = cascade.sample([{}, {}], jax.random.key(0), {}, jnp.arange(4))
        np.testing.assert_allclose(10 * second[:, ::2, ::2], first, atol=1e-6)


def test_images_can_be_handed_on_as_bytes():
    cascade = _echo_cascade(schedules.cosine_continuous(), {"steps": 5}, {"quantize": True})
    first, second = cascade.sample([{}, {}], jax.random.key(0), {}, jnp.arange(4))
    levels = (10 * np.asarray(second) + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert np.abs(10 * second[:, ::2, ::2] - first).max() <= 1.001 / 255


def test_a_trained_cascade_draws_every_stage_by_index():
    base, later = make_generation(), make_super_resolution()
    params = [randomize(base.init(jax.random.key(0)), 0.1), randomize(later.init(jax.random.key(1)), 0.1)]
    sampling = Sampling(steps=2, guidance=1.5)
    cascade = Cascade([Stage(base, sampling), Stage(later, dataclasses.replace(sampling, aug_level=0.2))])
    draw = jax.jit(lambda label, indices: cascade.sample(params, jax.random.key(0), {"label": label}, indices))
    all_four = draw(np.arange(4), jnp.arange(4))
    last_two = draw(np.arange(2, 4), jnp.arange(2, 4))
    assert [image.shape for image in all_four] == [(4, 8, 8, 1), (4, 16, 16, 1)]
    for whole, part in zip(all_four, last_two, strict=True):
        np.testing.assert_allclose(whole[2:], part, atol=1e-4)


def test_what_does_not_chain_is_refused():
    base, later, sampling = make_generation(), make_super_resolution(), Sampling(steps=2)
    with pytest.raises(ConfigError, match="at least one stage"):
        Cascade([])
    with pytest.raises(ConfigError, match=r"draws images of the shape \(16, 16, 1\), but stage 2 takes"):
        Cascade([Stage(make_generation(image_size=16), sampling), Stage(later, sampling)])
    with pytest.raises(ConfigError, match="must be 'super_resolution'"):
        Cascade([Stage(base, sampling), Stage(base, sampling)])
    with pytest.raises(ConfigError, match=r"different numbers of classes: \[4, 5\]"):
        Cascade([Stage(base, sampling), Stage(make_super_resolution(num_classes=5), sampling)])
    with pytest.raises(ConfigError, match="lower aug_level"):
        Cascade([Stage(base, sampling), Stage(later, Sampling(aug_level=1.0, truncated=True))])
    with pytest.raises(ConfigError, match="guidance 2 on an unconditional model"):
        Cascade([Stage(make_generation(num_classes=0), Sampling(guidance=2.0)), Stage(later, sampling)])


def test_labels_are_wanted_where_any_stage_has_classes():
    cascade = Cascade([Stage(make_generation(num_classes=0), Sampling()), Stage(make_super_resolution(), Sampling())])
    assert cascade.num_classes == 4
    with pytest.raises(ConfigError, match="needs 'label'"):
        cascade.check_request({})
