"""One program on any mesh: the same losses and gradients."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import NoisyClassifier
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.loop import Loop
from diffusion_jax.training.step import summarize
from tests.training import tiny

MESHES = [(8, 1, 1), (1, 8, 1), (2, 1, 4), (1, 1, 8), (4, 2, 1), (2, 2, 2)]
QUICK = [(1, 8, 1), (2, 2, 2)]

UNET = {
    "system": {
        "name": "diffusion",
        "process": {"schedule": "cosine_continuous", "prediction": "v"},
        "network": {
            "name": "unet", "channels": 8, "groups": 4, "multipliers": [1, 2], "num_res_blocks": 1,
            "attention_resolutions": [], "num_heads": 1,
        },
        "conditioners": {"labels": {"num_classes": 10}},
    },
}  # fmt: skip


def run(steps=10, devices=1, **overrides):
    """(losses, final state) of a fresh run on the first devices."""
    program = tiny.prepare(devices, **overrides)
    state, found = program.init(), []
    for step in range(steps):
        sums = program.zero_metrics()
        state, metrics = program.step(state, sums, program.put(program.pipeline.batch(step)))
        found.append(summarize(jax.device_get(metrics))["loss"])
    return np.array(found), state


@pytest.fixture(scope="module")
def single():
    return run()


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor"), [pytest.param(*sizes, marks=() if sizes in QUICK else pytest.mark.slow) for sizes in MESHES]
)
def test_every_mesh_gives_the_losses_of_one_device(single, data, fsdp, tensor):
    found, state = run(devices=8, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor)
    np.testing.assert_allclose(found, single[0], rtol=1e-5)
    kernel = state.params["network"]["middle"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // (fsdp * tensor)}
    moment = next(x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape)
    average = state.ema["constant_0.99"]["network"]["middle"]["kernel"]
    assert moment.sharding == kernel.sharding == average.sharding


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES)
def test_every_mesh_gives_the_losses_of_a_unet_on_one_device(sizes, unet_losses):
    data, fsdp, tensor = sizes
    found, _ = run(devices=8, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, **UNET)
    np.testing.assert_allclose(found, unet_losses, rtol=1e-5)


@pytest.fixture(scope="module")
def unet_losses():
    return run(**UNET)[0]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (4, 1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_convolutions_on_a_mesh(sizes, stride):
    """With input and output features sharded apart, XLA's gradient on the first of these meshes is wrong by 70 %."""
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)))
    rng = np.random.default_rng(0)
    kernels = [0.1 * rng.standard_normal((3, 3, 16, 16)).astype(np.float32) for _ in range(2)]
    x = rng.standard_normal((16, 4, 4, 16)).astype(np.float32)

    def loss(kernels, x):
        for kernel in kernels:
            x = jax.nn.silu(
                jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            ) + (x if stride == 1 else 0)
        return (x**2).sum()

    expected = jax.jit(jax.grad(loss))(kernels, x)
    shardings = meshes.state_shardings(mesh, {"params": kernels})["params"]
    assert shardings[0].spec != P()
    gradient = jax.jit(jax.grad(loss), out_shardings=shardings)
    found = gradient(jax.device_put(kernels, shardings), jax.device_put(x, meshes.batch_sharding(mesh)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_reports_fetch_only_what_every_host_has(monkeypatch):
    """On several hosts no one of them has the whole of a sharded history, and fetching it fails."""

    def fetch(tree):
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)), "spans devices of other hosts"
        return jax.tree.map(np.asarray, tree)

    mesh = meshes.make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, jax.devices()[:8])
    state = {"times": jnp.zeros((1000, 16)), "right": jnp.ones((2, 4)), "seen": jnp.full(4, 2.0)}
    state = jax.device_put(state, meshes.state_shardings(mesh, state))
    zero = jnp.zeros((), jnp.int32)
    program = SimpleNamespace(system=SimpleNamespace(report=lambda state: NoisyClassifier.report(None, state)))
    idle = SimpleNamespace(row=dict, reset=lambda: None, update=lambda row: [])
    loop = SimpleNamespace(_clock=idle, _program=program, _watch=idle, _count_skipped=lambda step, skipped: None)
    monkeypatch.setattr(jax, "device_get", fetch)
    sums = tiny.prepare().zero_metrics()
    row = Loop._summary(loop, 1, SimpleNamespace(skipped=zero, system_state=state), sums)
    assert row["accuracy_top1/t_0_to_0.25"] == 0.5


def specs(devices=8, **overrides):
    """Path -> sharding of the state."""
    target = tiny.prepare(devices, **overrides).target
    return {meshes.path_name(path): leaf.sharding.spec for path, leaf in jax.tree_util.tree_flatten_with_path(target)[0]}


def test_rules_by_path():
    found = specs(mesh__data=1, mesh__fsdp=8, mesh__rules=[["middle/kernel", [None, None, "fsdp"]], ["out/kernel", []]])
    middle = {spec for path, spec in found.items() if path.endswith("middle/kernel")}
    assert middle == {P(None, None, "fsdp")}  # of the parameter, its average and both moments
    assert found["params/network/out/kernel"] == P()
    assert found["params/network/middle/bias"] == found["step"] == P()  # small
    both = specs(mesh__data=1, mesh__fsdp=4, mesh__tensor=2, mesh__rules=[["middle/kernel", [None, None, ["fsdp", "tensor"]]]])
    assert both["params/network/middle/kernel"] == P(None, None, ("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (["middle/kernel", [None, "model"]], "mesh.rules: axis .*unknown 'model'"),
        (["middle/kernel", ["fsdp"]], "3 does not divide over fsdp of 8 devices"),
        (["middle/bias", [None, "fsdp"]], "2 axes for 1 dimensions"),
        (["midle/kernel", ["fsdp"]], "'midle/kernel' matches nothing"),
        (["middle/(kernel", ["fsdp"]], "no pair of a regular expression"),
        ("middle/kernel", "no pair of a regular expression"),
    ],
)
def test_mistakes_in_rules(rule, message):
    with pytest.raises(ConfigError, match=message):
        tiny.prepare(8, mesh__data=1, mesh__fsdp=8, mesh__rules=[rule])


def test_factored_moments_follow_the_default():
    """Adafactor's row and column moments have the parameter's path, and fewer dimensions."""
    found = specs(
        mesh__data=1, mesh__fsdp=8, mesh__rules=[["level/kernel", ["fsdp"]]],
        optimizer={"name": "adafactor", "learning_rate": 1e-3, "min_dim_size_to_factor": 8},
    )  # fmt: skip
    assert found["params/network/level/kernel"] == P("fsdp")


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        ({"data__batch_size": 12}, 8, "batch_size 12 does not divide over 8 devices.*multiple of 8"),
        ({"data__batch_size": 6, "training__accumulate": 4}, 1, "4 microbatches.*multiple of 4"),
        ({"data__batch_size": 0}, 1, "batch_size must be a whole number from 1"),
        ({"mesh__data": 3}, 8, "3 x 1 x 1 = 3, but there are 8 devices"),
        ({"mesh__fsdp": 16}, 8, "but there are 8 devices"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, 8, "one of them may be -1"),
    ],
)
def test_what_does_not_divide(overrides, devices, message):
    with pytest.raises(ConfigError, match=message):
        tiny.prepare(devices, **overrides)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    id: int
    process_index: int


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((8, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]), ((2, 2, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
     ((1, 2, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]), ((1, 1, 8), [(0, 1)] * 4)],
)  # fmt: skip
def test_what_each_host_loads(monkeypatch, sizes, expected):
    """Eight devices in four processes; processes that share rows through the tensor axis load the same."""
    mesh = jax.sharding.AbstractMesh(sizes, meshes.AXES)
    devices = np.array([FakeDevice(i, i // 2) for i in range(8)], object).reshape(sizes)

    class Fake:
        def devices_indices_map(self, shape):
            rows = shape[0] // (sizes[0] * sizes[1])
            return {
                devices[place]: (slice((place[0] * sizes[1] + place[1]) * rows, (place[0] * sizes[1] + place[1] + 1) * rows),)
                for place in np.ndindex(sizes)
            }

    monkeypatch.setattr(meshes, "batch_sharding", lambda mesh: Fake())
    found = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(meshes.host_share(mesh))
    assert found == expected


def test_batches_leave_captions_behind():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    batch = {"image": np.zeros((4, 2, 2, 1), np.uint8), "caption": np.array(["a"] * 4, object)}
    placed = meshes.put_batch(batch, meshes.batch_sharding(mesh), 4)
    assert set(placed) == {"image"} and placed["image"].sharding == NamedSharding(mesh, P(("data", "fsdp")))


def test_state_is_never_whole_on_one_device():
    """What jit(init) is compiled to: no device holds more than its share, bar the small leaves."""
    program = tiny.prepare(8, mesh__data=1, mesh__fsdp=8, system={"name": "toy", "width": 64})
    memory = program._init.lower({}).compile().memory_analysis()
    total = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.target))
    assert memory.output_size_in_bytes < total / 4
    assert meshes.summary(program.target.params)["[None, None, 'fsdp']"] == 3 * 3 * 64 * 64
    assert jnp.all(program.init().params["network"]["middle"]["bias"] == 0)
