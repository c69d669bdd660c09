"""The system of nearly everything: its loss on an exact denoiser, samples by index, its parts, and what does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import schedules
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Classifies, Denoises, Pixels, Sampling, ability, from_config
from tests.tiny_systems import (
    NETWORK,
    NO_PARAMS,
    PROCESS,
    FunctionNetwork,
    gaussian_x0,
    loss_of,
    make_batch,
    make_function,
    make_generation,
    randomize,
    start,
)

KEY = jax.random.key(0)
UNCONDITIONAL = {"labels": None}


@pytest.mark.slow
def test_loss_of_the_exact_denoiser_is_the_posterior_variance():
    # For x0-prediction of N(m, s^2) pixels, E|x0 - E[x0|x_t]|^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2).
    schedule = schedules.cosine_continuous()
    system = make_function(gaussian_x0(0.1, 0.2, schedule), process={"schedule": schedule, "prediction": "x0"})
    rng = np.random.default_rng(0)
    pixels = np.clip(np.round((0.1 + 0.2 * rng.standard_normal((2000, 8, 8, 1)) + 1) * 127.5), 0, 255)
    _, seen = loss_of(system, NO_PARAMS, {"image": pixels.astype(np.uint8)}, jax.random.key(1))
    alpha, sigma = schedule.alpha_sigma(np.asarray(schedule.inverse(np.asarray(seen["log_snr"], np.float64))))
    expected = 0.04 * sigma**2 / (alpha**2 * 0.04 + sigma**2)
    assert np.asarray(seen["per_example"]).mean() == pytest.approx(expected.mean(), rel=0.02)


def test_a_sample_is_a_function_of_its_index():
    system = make_generation()
    params = randomize(start(system))
    sampling = Sampling(solver="ddpm", steps=3, guidance=2.0)
    draw = jax.jit(lambda request, indices: system.sample(params, jax.random.key(3), request, indices, sampling))
    label = np.array([0, 1, 2, 3, 0, 1], np.int32)
    together = draw({"label": label}, jnp.arange(6))
    order = np.array([4, 1, 5, 0, 2, 3])
    np.testing.assert_allclose(together[order], draw({"label": label[order]}, jnp.asarray(order)), atol=1e-5)
    assert together.shape == (6, 8, 8, 1) and jnp.abs(together).max() <= 1
    assert jnp.abs(together[0] - together[1]).max() > 0.1


def test_thresholds_and_clipping_follow_the_range_of_the_codec():
    """A network that says 9 of data in [0, 4], of data without bounds, and of pixels."""

    class Bounded(Pixels):
        range = (0.0, 4.0)

    class Unbounded(Pixels):
        range = None

    process = {"schedule": "cosine_continuous", "prediction": "x0"}
    for codec, expected in ((Bounded(), 4.0), (Unbounded(), 9.0), ("pixels", 1.0)):
        system = make_function(lambda x, noise, cond: 0 * x + 9, process=process, codec=codec)
        for threshold in ("static", "none"):
            samples = system.sample(NO_PARAMS, KEY, {}, jnp.arange(2), Sampling(steps=1, threshold=threshold))
            np.testing.assert_allclose(samples, expected, atol=1e-3)


class Halving(Pixels):
    """Encodes pixels as means of 2x2 blocks, times a frozen number; decodes by repeating."""

    range, needs = None, ("scale",)

    def spec(self, data):
        return Spec((data.shape[0] // 2, data.shape[1] // 2, data.channels))

    def encode(self, frozen, batch, key):
        x = super().encode(frozen, batch, key)
        return frozen["scale"] * x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))


def test_a_codec_may_change_the_shape_and_read_frozen_parameters():
    """The network and the process know the encoded data alone; nothing but a teacher makes the first parameters."""
    seen = []
    network = FunctionNetwork(lambda x, noise, cond: seen.append(x.shape) or 0 * x, (4, 6, 1))
    system = make_function(size=(8, 12), codec=Halving(), network=network, process={**PROCESS, "prediction": "x0"})
    assert system.needs == ("scale",) and system.start({"scale": 3.0}) is None
    system.check_frozen("scale", system)
    batch = {"image": np.full((4, 8, 12, 1), 255, np.uint8)}
    value, _ = loss_of(system, NO_PARAMS, batch, KEY, frozen={"scale": jnp.float32(3.0)})
    assert float(value) == pytest.approx(9.0, rel=1e-5) and seen[-1] == (4, 4, 6, 1)  # (3 - 0)^2
    assert system.sample(NO_PARAMS, KEY, {}, jnp.arange(2), Sampling(steps=2)).shape == (2, 4, 6, 1)
    assert system.spec == Spec((8, 12, 1)) and system.model_spec == Spec((4, 6, 1))


def test_learned_variance_doubles_the_output_channels_and_is_sampled_with():
    fields = {
        "process": {"schedule": "cosine", "prediction": "eps", "variance": "learned_range"},
        "objective": {"vlb_weight": 0.001},
    }
    system = make_generation(**UNCONDITIONAL, **fields)
    params = jax.eval_shape(system.init, KEY)
    assert jax.eval_shape(lambda params: loss_of(system, params, make_batch(8), KEY)[0], params).shape == ()

    system = make_function(lambda x, noise, cond: jnp.concatenate([x, 0 * x], -1), **fields)
    sampling = Sampling(solver="ddpm", steps=2)
    images = jax.jit(lambda indices: system.sample(NO_PARAMS, KEY, {}, indices, sampling))(jnp.arange(2))
    assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()


@pytest.mark.parametrize(
    ("fields", "sampling", "message"),
    [
        (UNCONDITIONAL, {"guidance": 2.0}, "guidance 2 on an unconditional model"),
        ({"labels": {"num_classes": 4, "drop": 0.0}}, {"guidance": 2.0}, "condition dropout.*drop > 0"),
        ({}, {"grid": {"name": "respaced", "spacing": "10"}}, "picks indices of a discrete chain"),
        ({}, {"solver": {"name": "ddpm", "variance": "learned_range"}}, "needs the network's variance channels"),
    ],
)
def test_sampling_must_suit_the_trained_model(fields, sampling, message):
    with pytest.raises(ConfigError, match=message):
        make_generation(**fields).check_sampling(Sampling(**sampling))


def test_check_names_what_differs_from_the_data():
    class Data:
        spec, num_classes, augment = Spec((8, 8, 1)), 4, 0.0
        one_pass, __len__ = (lambda self, size: iter([make_batch(8)])), lambda self: 8

    system = make_generation()
    system.check(Data())
    Data.num_classes = 7
    with pytest.raises(ConfigError, match="the data have 7 classes, the system num_classes=4"):
        system.check(Data())
    Data.spec = Spec((8, 12, 1))
    with pytest.raises(ConfigError, match="the data are 8x12x1 image, the system's 8x8x1 image"):
        system.check(Data())


# Parts -----------------------------------------------------------------------------------------------------------------


def test_the_recipe_need_not_repeat_what_the_data_say():
    config = {
        "system": {"process": PROCESS, "network": {"name": "unet", "channels": 8, "groups": 4}},
        "data": {"image_size": 16, "channels": 1},
    }
    system = from_config(config)
    assert system.spec == Spec((16, 16, 1)) and system.network.spec == system.spec
    with pytest.raises(ConfigError, match="data.image_size is missing"):
        from_config({**config, "data": {}})
    with pytest.raises(ConfigError, match="unknown system 'generation'"):
        from_config({**config, "system": {**config["system"], "name": "generation"}})
    with pytest.raises(ConfigError, match="system 'diffusion' has no field 'num_classes'"):
        from_config({**config, "system": {**config["system"], "num_classes": 4}})
    with pytest.raises(ConfigError, match="unknown objective 'denoise'; did you mean 'denoising'"):
        from_config({**config, "system": {**config["system"], "objective": "denoise"}})


def test_the_network_must_fit_the_system():
    with pytest.raises(ConfigError, match="made for 16x16x1 image, but the system's data are 8x8x1 image"):
        make_generation(network={**NETWORK, "image_size": 16})
    with pytest.raises(ConfigError, match=r"conditions its network on \['label'\], but the network takes nothing"):
        make_generation(network=FunctionNetwork(lambda x, noise, cond: x, (8, 8, 1)))


def test_a_lacking_ability_is_said_in_one_line():
    system = make_generation()
    assert ability(system, Denoises) is system
    with pytest.raises(ConfigError, match="^runs/x is of the system Diffusion, which is no classifier: train one with"):
        ability(system, Classifies, "runs/x")
