"""Grids along the way, and the held-out loss."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import ConfigError
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Sampling
from diffusion_jax.training.previews import GridWriter, HeldOut, check_grids, fixed_batch
from tests.training import tiny


def test_the_batch_is_shuffled():
    """The source is sorted by class; of each class there are as many, to within one where there are enough."""
    batch = fixed_batch(tiny.prepare(8).data, 8)
    assert len(batch["label"]) == 8 and len(set(batch["label"])) == 8
    counts = np.bincount(fixed_batch(tiny.prepare(8).data, 20)["label"], minlength=10)
    assert counts.tolist() == [2] * 10
    assert len(fixed_batch(tiny.prepare(8).data, 1000)["label"]) == 60


@pytest.mark.parametrize("devices", [1, 8])
def test_a_grid(tmp_path, devices):
    """Both sets of weights side by side, from the same noise, the same on any number of devices."""
    program = tiny.prepare(devices)
    params = program.init().params
    pictures = []
    for count in (32, 3):
        batch = fixed_batch(program.data, count)
        writer = GridWriter(tmp_path, program.system, Sampling(), batch, 1, program.mesh)
        pictures.append(writer.write(7, {"EMA": params, "raw weights": params}, {}))
    with Image.open(tmp_path / "grids" / "step_0000007.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pictures[1][..., 0])
    height, width, _ = pictures[0].shape
    assert height == 14 + 10 * 18 + 2 and width == 2 * (4 * 18 + 2) + 12  # a class to a row, four of most
    half = (width - 12) // 2
    left, right = pictures[0][14:, :half], pictures[0][14:, -half:]
    np.testing.assert_array_equal(left, right)
    assert (pictures[0][:14, :half] != pictures[0][:14, -half:]).any()  # the labels
    assert left.std() > 20
    found = tmp_path.parent / "grid.npy"
    if found.exists():
        np.testing.assert_allclose(np.load(found).astype(int), pictures[0].astype(int), atol=1)
    np.save(found, pictures[0])


def test_grids_of_a_run(tmp_path):
    tiny.train(tmp_path, training__grid_every=2, training__grid_samples=4, training__steps=4)
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == ["step_0000002.png", "step_0000004.png"]


def test_the_held_out_loss():
    """The mean over the held-out examples that fill batches, by hand; and the same on any number of devices."""
    found = []
    for devices in (1, 8):
        program = tiny.prepare(devices, system={"name": "toy", "noiseless": True}, training__eval_examples=40)
        state = program.init()
        found.append(HeldOut(program)(state.params, state)["held_out_loss"])
    source = tiny.Noise(split="test")
    images = np.stack([source[i]["image"] for i in range(32)])
    labels = np.array([source[i]["label"] for i in range(32)])
    system = program.system
    params = jax.device_get(state.params)
    expected, _ = system.losses(params, {"seen": 0}, {"image": images, "label": labels}, jax.random.key(0))["network"]
    np.testing.assert_allclose(found, float(expected), rtol=1e-5)
    with pytest.raises(ConfigError, match="4 held-out examples for 8 devices"):
        HeldOut(tiny.prepare(8, training__eval_examples=4))


def test_systems_without_pictures():
    bare = tiny.Bare(Spec((3,), "vector"))
    with pytest.raises(ConfigError, match="system Bare draws nothing: set training.grid_every to 0"):
        check_grids(bare)
    with pytest.raises(ConfigError, match="grids show images, and the run's data are 9x3 points: set training.grid_every to 0"):
        check_grids(tiny.Toy(Spec((9, 3), "points")))
