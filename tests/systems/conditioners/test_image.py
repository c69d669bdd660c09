"""Image to image: what is known stays, what is missing is learned and made, whatever the task."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data, models
from diffusion_jax.data.degradations import TASKS
from diffusion_jax.errors import ConfigError
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Diffusion, Sampling, check_request, request_of, to_float, to_uint8
from diffusion_jax.systems.conditioners import panorama
from diffusion_jax.systems.conditioners.image import luma, with_luma
from tests.tiny_systems import NO_PARAMS, fed_in_training, loss_of, make_function, zeros

SIZE = 16
PROCESS = {
    "schedule": {"name": "linear", "num_steps": 2000, "beta_start": 2e-6, "beta_end": 0.02},
    "prediction": "eps",
    "variance": "fixed_large",
    "noise_input": "sqrt_gamma",
}
STEPS = Sampling(solver="ddpm", steps=3)
TIMES = {"times": "piecewise_uniform"}
FIELDS = {"size": SIZE, "channels": 3, "process": PROCESS, "objective": TIMES, "conditioners": {"image": {}}}


def _system(function=zeros, image=None, **fields) -> Diffusion:
    return make_function(function, **{**FIELDS, "conditioners": {"image": image or {}}, **fields})


def _batch(degradation="mixture", count=8):
    source = {"name": "photographs", "size": SIZE, "num_examples": count}
    config = {"source": source, "image_size": SIZE, "batch_size": count, "degradation": degradation}
    return data.from_config(config).batch(0)


def test_the_published_network_has_the_published_size():
    network = models.unet_palette256()
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 552_814_083
    assert set(network.cond_spec) == {"image"} and network.cond_spec["image"].shape == (256, 256, 3)
    Diffusion(spec=Spec.image(256, 3), process=PROCESS, network="unet_palette256", conditioners={"image": {}}, objective=TIMES)


@pytest.mark.parametrize("task", TASKS)
def test_known_pixels_return_to_the_last_bit(task):
    batch = _batch(task)
    # A network that answers noise: whatever it says, known pixels stay.
    system = _system(lambda x, noise, cond: jnp.sin(50 * x))
    request = request_of(system, batch)
    made = np.asarray(to_uint8(system.sample(NO_PARAMS, jax.random.key(0), request, jnp.arange(8), STEPS)))
    missing = np.broadcast_to(batch["missing"] > 127, made.shape)
    if task in ("inpaint", "uncrop"):
        np.testing.assert_array_equal(made[~missing], batch["image"][~missing])
        assert (made[missing] != batch["image"][missing]).mean() > 0.9
    else:
        assert not missing.any() and (made != batch["degraded"]).mean() > 0.9


def test_the_network_sees_noise_in_the_holes_and_clean_pixels_around_them():
    batch = _batch("inpaint", 64)
    x, _, cond = fed_in_training(batch, **FIELDS)
    x, image = np.asarray(x), np.asarray(cond["image"])
    missing = np.broadcast_to(batch["missing"] > 127, x.shape)
    clean = batch["image"] / 127.5 - 1
    np.testing.assert_allclose(image[~missing], clean[~missing], atol=1e-6)
    np.testing.assert_array_equal(x[~missing], image[~missing])  # and no noise beside it
    assert abs(image[missing].mean()) < 0.05 and abs(image[missing].std() - 1) < 0.05
    assert abs(np.corrcoef(x[missing], image[missing])[0, 1]) < 0.05  # not the noise of x_t


def test_sampling_shows_known_pixels_clean_and_answers_with_them():
    seen = []

    def function(x, noise, cond):
        seen.append(np.asarray(x))
        return jnp.sin(50 * x)

    batch, system = _batch("mixture", 16), _system(function)
    denoise = system.denoiser(
        NO_PARAMS, jax.random.key(0), request_of(system, batch), jnp.arange(16), Sampling(threshold="none")
    )
    x = jax.random.normal(jax.random.key(1), (16, SIZE, SIZE, 3))
    x0 = np.asarray(denoise(x, jnp.full(16, 0.5)).x0)
    holes = batch["missing"].any((1, 2, 3))
    assert 0 < holes.sum() < 16  # images without a hole, among those with one, are made as a whole
    known = np.broadcast_to(holes[:, None, None, None] & (batch["missing"] == 0), x.shape)
    clean = batch["degraded"] / 127.5 - 1
    for found in (seen[0], x0):
        np.testing.assert_allclose(found[known], clean[known], atol=1e-6)
    np.testing.assert_array_equal(seen[0][~known], np.asarray(x)[~known])
    assert (np.abs(x0 - clean)[~known] > 1e-3).mean() > 0.9


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_counts_missing_pixels_alone_whatever_their_number(distance):
    batch = _batch("inpaint", 64)
    known = jnp.asarray(batch["missing"] <= 127)
    system = _system(lambda x, noise, cond: jnp.where(known, 1e3, 0.0 * x), objective={**TIMES, "distance": distance})
    loss, output = loss_of(system, NO_PARAMS, batch, jax.random.key(0))
    # The network says 0 where it counts: what is left is E|eps| or E[eps^2], on small holes as on large.
    expected = np.sqrt(2 / np.pi) if distance == "l1" else 1.0
    assert float(loss) == pytest.approx(expected, abs=0.02)
    assert output["per_example"].shape == (64,)
    small = np.argsort(batch["missing"].mean((1, 2, 3)))[:16]
    assert float(output["per_example"][small].mean()) == pytest.approx(expected, abs=0.06)


@pytest.mark.slow
def test_a_network_that_knows_the_answer_fills_the_hole_with_it():
    batch = _batch("uncrop")
    clean = jnp.asarray(batch["image"]) / 127.5 - 1

    def function(x, noise, cond):
        alpha = (noise / 1000)[:, None, None, None]
        return (x - alpha * clean) / jnp.sqrt(1 - alpha**2)

    system = _system(function)
    draw = lambda **fields: np.asarray(to_uint8(system.sample(  # noqa: E731
        NO_PARAMS, jax.random.key(0), request_of(system, batch), jnp.arange(8), Sampling(**fields)
    )))  # fmt: skip
    published = {"name": "linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.09}
    for made in (draw(solver="ddim", steps=10), draw(solver="ddpm", steps=1000, schedule=published)):
        assert np.abs(made.astype(int) - batch["image"]).max() <= 1


@pytest.mark.slow
def test_samples_belong_to_their_index_and_their_request():
    batch, system = _batch("inpaint"), _system(lambda x, noise, cond: jnp.tanh(x + cond["image"]))
    request = request_of(system, batch)
    draw = lambda rows: system.sample(  # noqa: E731
        NO_PARAMS, jax.random.key(0), {name: value[rows] for name, value in request.items()}, jnp.array(rows), STEPS
    )
    np.testing.assert_array_equal(draw([0, 1, 2, 3])[2:], draw([2, 3]))


def test_colours_can_be_given_the_luma_that_was_asked():
    batch = _batch("colorize")
    system = _system(lambda x, noise, cond: jnp.sin(50 * x), {"keep_luma": True})
    made = system.sample(NO_PARAMS, jax.random.key(0), request_of(system, batch), jnp.arange(8), STEPS)
    grey = batch["degraded"][..., 0] / 127.5 - 1
    np.testing.assert_allclose(np.asarray(made) @ np.array([0.299, 0.587, 0.114]), grey, atol=2e-6)
    assert float(jnp.abs(made).max()) <= 1 + 1e-6
    in_bytes = np.asarray(to_uint8(made)) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(in_bytes - batch["degraded"][..., 0]).max() <= 0.5 + 1e-3
    # Other tasks are left alone.
    other = {**request_of(system, batch), "task": np.full(8, TASKS.index("jpeg"))}
    free = system.sample(NO_PARAMS, jax.random.key(0), other, jnp.arange(8), STEPS)
    assert np.abs(np.asarray(luma(free))[..., 0] - grey).max() > 0.1


def test_a_luma_is_given_without_leaving_the_range():
    rng = np.random.default_rng(0)
    images, wanted = rng.uniform(-1, 1, (4, 8, 8, 3)), rng.uniform(-1, 1, (4, 8, 8, 1))
    made = np.asarray(with_luma(jnp.asarray(images), jnp.asarray(wanted)))
    np.testing.assert_allclose(made @ np.array([0.299, 0.587, 0.114]), wanted[..., 0], atol=1e-6)
    assert np.abs(made).max() <= 1 + 1e-6
    np.testing.assert_allclose(with_luma(jnp.asarray(images), luma(jnp.asarray(images))), images, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_panorama_keeps_what_it_had_and_goes_on(side):
    # A network that continues the image with the colour at its known edge: a fixed point of uncropping.
    def function(x, noise, cond):
        column = cond["image"][:, :, :1] if side == "right" else cond["image"][:, :, -1:]
        alpha = (noise / 1000)[:, None, None, None]
        return (x - alpha * column) / jnp.sqrt(1 - alpha**2)

    stripes = np.repeat(np.random.default_rng(0).integers(30, 220, (2, SIZE, 1, 3), np.uint8), SIZE, 2)
    wide = np.asarray(
        panorama(
            _system(function),
            NO_PARAMS,
            jax.random.key(0),
            stripes,
            Sampling(solver="ddim", steps=3),
            applications=8,
            side=side,
        )
    )
    assert wide.shape == (2, SIZE, SIZE + 8 * SIZE // 2, 3)
    np.testing.assert_array_equal(wide[:, :, :SIZE] if side == "right" else wide[:, :, -SIZE:], stripes)
    assert np.abs(wide.astype(int) - stripes[:, :, :1]).max() <= 1  # eight times, and no drift
    with pytest.raises(ConfigError, match="side: unknown 'up'"):
        panorama(_system(), NO_PARAMS, jax.random.key(0), stripes, STEPS, side="up")


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_application_of_a_panorama_is_of_the_outer_half_and_draws_anew(side):
    width, edge = 5, 0 if side == "right" else 4  # of each request, the column that is always known

    class Continuing:
        """Goes on with a slope in the first channel; the second is drawn, the third says the task."""

        def sample(self, params, key, request, indices, sampling):
            given = to_float(request["degraded"])
            slope = given[:, :, edge : edge + 1, 0] + 4 / 255 * (jnp.arange(width) - edge)
            task = jnp.broadcast_to(request["task"][:, None, None] / 127.5 - 1, slope.shape)
            made = jnp.stack([slope, jax.random.uniform(key, slope.shape), task], -1)
            return jnp.where(request["missing"] > 0, made, given)

    columns = np.arange(width) + (0 if side == "right" else 6)
    given = np.zeros((2, 4, width, 3), np.uint8)
    given[..., 0] = 50 + 2 * columns
    wide = np.asarray(panorama(Continuing(), {}, jax.random.key(0), given, STEPS, applications=3, side=side))
    assert wide.shape == (2, 4, width + 3 * (width // 2), 3)
    np.testing.assert_array_equal(wide[..., 0], np.broadcast_to(50 + 2 * np.arange(11), (2, 4, 11)))
    made = wide[:, :, width:] if side == "right" else wide[:, :, :-width]
    assert (made[..., 2] == TASKS.index("uncrop")).all()
    parts = made[..., 1].reshape(2, 4, 3, 2)
    assert (parts[:, :, 0] != parts[:, :, 1]).any() and (parts[:, :, 1] != parts[:, :, 2]).any()


def test_what_does_not_fit_is_refused():
    system, request = _system(), {}
    with pytest.raises(ConfigError, match="needs 'degraded' and 'missing'.*set data.degradation"):
        check_request(system, request)
    good = {"degraded": np.zeros((2, SIZE, SIZE, 3), np.uint8), "missing": np.zeros((2, SIZE, SIZE, 1), np.uint8)}
    check_request(system, good)
    with pytest.raises(ConfigError, match="mask and image must have one size"):
        check_request(system, {**good, "missing": np.zeros((2, 8, SIZE, 1), np.uint8)})
    for mask, found in ((good["missing"] + np.uint8(1), "the value 1"), (good["missing"] > 0, "the dtype bool"),
                        (np.float32(good["missing"]), "the dtype float32")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{found}: a mask is uint8, 255"):
            check_request(system, {**good, "missing": mask})
    with pytest.raises(ConfigError, match="bound is over all positions"):
        _system(objective={"weighting": "vlb"})
    with pytest.raises(ConfigError, match="was trained on"):
        check_request(system, {**good, "degraded": np.zeros((2, 8, 8, 3), np.uint8)})
    plain = data.from_config({"source": {"name": "photographs", "size": SIZE}, "image_size": SIZE, "batch_size": 2})
    with pytest.raises(ConfigError, match="needs data.degradation"):
        system.check(plain)
    with pytest.raises(ConfigError, match="'edm' scales its input"):
        _system(process={"schedule": "edm", "prediction": "edm"}, objective={"times": "log_normal"})
