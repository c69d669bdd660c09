"""One program on any mesh: the same losses; sharded, donated, compiled once."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffusion_jax import training
from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import register
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.step import summarize
from tests.training import tiny


def run(steps=10, devices=1, **overrides):
    """(losses, final state) of a fresh run on the first devices."""
    program = training.prepare(tiny.config(**overrides), jax.devices()[:devices])
    state, found = program.init(), []
    for step in range(steps):
        state, metrics = program.step(state, program.zero_metrics(), program.put(program.pipeline.batch(step)))
        found.append(summarize(jax.device_get(metrics))["loss"])
    return np.array(found), state


@pytest.fixture(scope="module")
def single():
    return run()


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(8, 1, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2)])
def test_every_mesh_gives_the_losses_of_one_device(single, data, fsdp, tensor):
    found, state = run(devices=8, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor)
    np.testing.assert_allclose(found, single[0], rtol=1e-5)
    kernel = state.params["down1_0_res"]["conv_in"]["kernel"]
    assert len(kernel.addressable_shards) == 8
    assert kernel.addressable_shards[0].data.size == kernel.size // (fsdp * tensor)
    moment = next(x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape)
    average = state.ema["constant_0.99"]["down1_0_res"]["conv_in"]["kernel"]
    assert moment.sharding == kernel.sharding == average.sharding


def test_rules_by_path_and_their_mistakes():
    rules = [["down1_0_res/conv_in/kernel", [None, None, None, "fsdp"]]]
    program = training.prepare(tiny.config(mesh__data=1, mesh__fsdp=8, mesh__rules=rules), jax.devices())
    assert program.target.params["down1_0_res"]["conv_in"]["kernel"].sharding.spec == jax.P(None, None, None, "fsdp")
    for spec, message in (([None, None, None, "model"], "'model'"), (["fsdp"], "does not divide")):
        with pytest.raises(ConfigError, match=message):
            training.prepare(tiny.config(mesh__data=1, mesh__fsdp=8, mesh__rules=[["conv_in/kernel", spec]]), jax.devices())


def test_the_state_is_donated():
    program = training.prepare(tiny.config(), jax.devices()[:1])
    state, metrics = program.init(), program.zero_metrics()
    new, _ = program.step(state, metrics, program.put(program.pipeline.batch(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params)) and int(new.step) == 1


def test_microbatches_average(single):
    """The same first gradient norm as the mean over the microbatches' gradients, by their own keys."""
    whole, parts = run(steps=3, training__accumulate=1)[0], run(steps=3, training__accumulate=4)[0]
    assert np.isfinite(parts).all() and np.abs(whole - parts).max() < 0.3
    on_eight, _ = run(steps=3, devices=4, training__accumulate=4)
    np.testing.assert_allclose(on_eight, parts, rtol=1e-5)


def test_the_step_depends_on_the_step_alone(single):
    again, _ = run(steps=10)
    np.testing.assert_array_equal(again, single[0])
    other, _ = run(steps=3, seed=2)
    assert np.abs(other - single[0][:3]).min() > 1e-4


@register("system", "test_breaks")
class Breaks:
    """One weight; the loss of batches whose first label is even is not a number."""

    image_shape, num_classes = (8, 8, 1), 10

    def __init__(self, image_size, channels):
        pass

    def init(self, key):
        return {"w": jax.numpy.ones(4)}

    def init_state(self):
        return {}

    def loss(self, params, state, batch, key, *, train=True):
        bad = jax.numpy.where(batch["label"][0] % 2 == 0, jax.numpy.nan, 1.0)
        per_example = (params["w"].sum() * bad) ** 2 + 0.0 * batch["label"]
        return per_example.mean(), (state, {"per_example": per_example, "log_snr": per_example * 0})

    def check(self, pipeline):
        pass

    def check_sampling(self, sampling):
        pass


def test_steps_that_are_not_finite_change_nothing_but_the_counts():
    program = training.prepare(tiny.config(system={"name": "test_breaks"}), jax.devices()[:1])
    state, skipped = program.init(), 0
    for step in range(6):
        batch = program.pipeline.batch(step)
        before = jax.device_get(state.as_dict())
        state, metrics = program.step(state, program.zero_metrics(), program.put(batch))
        after = jax.device_get(state.as_dict())
        bad = batch["label"][0] % 2 == 0
        skipped += bad
        assert after["step"] == step + 1 and after["skipped"] == skipped
        for field in ("params", "ema", "opt_state"):
            same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before[field], after[field]))
            assert same == bad, field
        assert np.isfinite(summarize(jax.device_get(metrics))["loss"])
    assert 0 < skipped < 6


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        ({"data__batch_size": 12}, 8, "batch_size 12 does not divide over 8 devices.*multiple of 8"),
        ({"data__batch_size": 6, "training__accumulate": 4}, 1, "4 microbatches"),
        ({"mesh__data": 3}, 8, "3 x 1 x 1 = 3, but there are 8 devices"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, 8, "one of them may be -1"),
        ({"data__image_size": 12}, 1, "12"),
    ],
)
def test_what_does_not_divide(overrides, devices, message):
    with pytest.raises(ConfigError, match=message):
        training.prepare(tiny.config(**overrides), jax.devices()[:devices])


def test_batches_leave_captions_behind():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    batch = {"image": np.zeros((4, 2, 2, 1), np.uint8), "caption": np.array(["a"] * 4, object)}
    assert set(meshes.put_batch(batch, meshes.batch_sharding(mesh))) == {"image"}
