"""Generation: condition dropout, requests, samples by index, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import schedules
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Generation, Sampling, from_config, labels
from tests.tiny_systems import PROCESS, FunctionNetwork, gaussian_x0, make_batch, make_generation, randomize, start


def _told_labels(cond_drop: float, train: bool) -> np.ndarray:
    """The labels that a network is told for 4,000 images of class 1 of 3."""
    told = []

    def function(x, noise, cond):
        told.append(cond["label"])
        return jnp.zeros_like(x)

    system = Generation(
        image_size=2,
        channels=1,
        process=PROCESS,
        network=FunctionNetwork(function, (2, 2, 1), {"label": jax.ShapeDtypeStruct((), jnp.int32)}),
        num_classes=3,
        cond_drop=cond_drop,
    )
    batch = {"image": np.zeros((4000, 2, 2, 1), np.uint8), "label": np.ones(4000, np.int32)}
    system.loss({}, system.init_state(), batch, jax.random.key(0), train=train)
    return np.asarray(told[-1])


def test_condition_dropout_gives_the_null_label_at_its_rate_in_training_only():
    told = _told_labels(0.2, train=True)
    assert set(np.unique(told)) == {1, 3}
    assert abs((told == 3).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
    assert (_told_labels(0.2, train=False) == 1).all()
    assert (_told_labels(0.0, train=True) == 1).all()


def test_the_null_label_is_a_row_of_its_own():
    rows = lambda system: system.network.shapes()["label_embedding"]["embedding"].shape[0]  # noqa: E731
    assert rows(make_generation()) == 5
    assert rows(make_generation(cond_drop=0.0)) == 4


def test_loss_of_the_exact_denoiser_is_the_posterior_variance():
    # For x0-prediction of N(m, s^2) pixels, E|x0 - E[x0|x_t]|^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2).
    schedule = schedules.cosine_continuous()
    system = Generation(
        image_size=8,
        channels=1,
        process={"schedule": schedule, "prediction": "x0"},
        network=FunctionNetwork(gaussian_x0(0.1, 0.2, schedule), (8, 8, 1)),
    )
    rng = np.random.default_rng(0)
    pixels = np.clip(np.round((0.1 + 0.2 * rng.standard_normal((2000, 8, 8, 1)) + 1) * 127.5), 0, 255)
    _, (_, seen) = system.loss({}, {}, {"image": pixels.astype(np.uint8)}, jax.random.key(1))
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


def test_guidance_is_the_extrapolation_from_the_null_class():
    system = make_generation()
    params = randomize(start(system))
    x, t, indices = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.float32(0.5), jnp.arange(2)

    def x0(guidance: float, label: int) -> jax.Array:
        request = {"label": np.full(2, label, np.int32)}
        sampling = Sampling(steps=1, guidance=guidance, threshold="none")
        return system.denoiser(params, jax.random.key(0), request, indices, sampling)(x, t).x0

    null = x0(1.0, 4)  # the null label, given by hand
    np.testing.assert_allclose(x0(3.0, 1), null + 3 * (x0(1.0, 1) - null), atol=1e-4)
    assert jnp.abs(x0(3.0, 1) - x0(1.0, 1)).max() > 0.01


def test_the_recipe_need_not_repeat_what_the_data_say():
    config = {
        "system": {"name": "generation", "process": PROCESS, "network": {"name": "unet", "channels": 8, "groups": 4}},
        "data": {"image_size": 16, "channels": 1},
    }
    assert from_config(config).image_shape == (16, 16, 1)


def test_learned_variance_doubles_the_output_channels_and_is_sampled_with():
    process = {"schedule": "cosine", "prediction": "eps", "variance": "learned_range"}
    fields = {"process": process, "vlb_weight": 0.001, "num_classes": 0}
    system = make_generation(**fields)
    params = jax.eval_shape(system.init, jax.random.key(0))
    assert jax.eval_shape(system.loss, params, {}, make_batch(8), jax.random.key(1))[0].shape == ()

    double = FunctionNetwork(lambda x, noise, cond: jnp.concatenate([x, 0 * x], -1), (8, 8, 1))
    system = make_generation(**fields, network=double)
    draw = jax.jit(lambda indices: system.sample({}, jax.random.key(0), {}, indices, Sampling(solver="ddpm", steps=2)))
    images = draw(jnp.arange(2))
    assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()


@pytest.mark.parametrize(
    ("fields", "sampling", "message"),
    [
        ({"num_classes": 0}, {"guidance": 2.0}, "guidance 2 on an unconditional model"),
        ({"cond_drop": 0.0}, {"guidance": 2.0}, "condition dropout"),
        ({}, {"grid": {"name": "respaced", "spacing": "10"}}, "picks indices of a discrete chain"),
        ({}, {"solver": {"name": "ddpm", "variance": "learned_range"}}, "needs the network's variance channels"),
    ],
)
def test_sampling_must_suit_the_trained_model(fields, sampling, message):
    with pytest.raises(ConfigError, match=message):
        make_generation(**fields).check_sampling(Sampling(**sampling))


def test_bad_requests_and_fields():
    system = make_generation()
    with pytest.raises(ConfigError, match="label 4 is out of range: the model has 4 classes, 0 to 3"):
        system.check_request({"label": np.array([0, 4])})
    with pytest.raises(ConfigError, match="needs 'label'"):
        system.check_request({})
    with pytest.raises(ConfigError, match="cond_drop is a probability"):
        make_generation(cond_drop=1.5)
    with pytest.raises(ConfigError, match="did you mean 'static'"):
        Sampling(threshold="statc")
    with pytest.raises(ConfigError, match="did you mean 'ddim'"):
        Sampling(solver="dim")
    for interval in ((3, 1), [1, 2, 3], (-1.0, 2.0), 4.0, ("1", "2")):
        with pytest.raises(ConfigError, match="guidance_interval must be two noise levels"):
            Sampling(guidance_interval=interval)
    with pytest.raises(ConfigError, match="sampling has no field 'guidence'; did you mean 'guidance'"):
        Sampling.from_config({"guidence": 1.0})


def test_check_names_what_differs_from_the_data():
    class Data:
        spec, num_classes = Spec((8, 8, 1)), 4

    system = make_generation()
    system.check(Data())
    Data.num_classes = 7
    with pytest.raises(ConfigError, match="7 classes"):
        system.check(Data())
    Data.spec = Spec((8, 8, 3))
    with pytest.raises(ConfigError, match=r"\(8, 8, 3\)"):
        system.check(Data())


def test_dropping_no_label_keeps_all():
    given = jnp.arange(4)
    assert (labels.drop(given, 4, 0.0, jax.random.key(0)) == given).all()
    assert (labels.drop(given, 4, 1.0, jax.random.key(0)) == 4).all()
