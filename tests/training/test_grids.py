"""Grids along the way, and the held-out loss."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Sampling
from diffusion_jax.training.grids import GridWriter, fixed_batch
from diffusion_jax.training.held_out import HeldOut
from tests.training import tiny


def test_the_batch_is_shuffled_and_the_same_on_every_host():
    first, second = (
        fixed_batch(tiny.prepare(8, data__num_threads=1).pipeline.__class__(
            source=tiny.Noise(), image_size=8, channels=1, batch_size=16, seed=3, host=host, hosts=2), 8)
        for host in (0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(first["label"], second["label"])
    assert len(set(first["label"])) > 3  # the source is sorted by class


@pytest.mark.parametrize("devices", [1, 8])
def test_a_grid(tmp_path, devices):
    """Both sets of weights side by side, from the same noise, the same on any number of devices."""
    program = tiny.prepare(devices)
    params = program.init().params
    pictures = []
    for count in (16, 3):
        batch = fixed_batch(program.pipeline, count)
        writer = GridWriter(tmp_path, program.system, Sampling(), batch, 1, program.mesh)
        pictures.append(writer.write(7, {"EMA": params, "raw weights": params}))
    with Image.open(tmp_path / "grids" / "step_0000007.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pictures[1][..., 0])
    height, width, _ = pictures[0].shape
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
        found.append(HeldOut(program)(state.params, state.system_state))
    source = tiny.Noise(split="test")
    images = np.stack([source[i]["image"] for i in range(32)])
    labels = np.array([source[i]["label"] for i in range(32)])
    system = program.system
    params = jax.device_get(state.params)
    expected = system.loss(params, {"seen": 0}, {"image": images, "label": labels}, jax.random.key(0))[0]
    np.testing.assert_allclose(found, float(expected), rtol=1e-5)
    with pytest.raises(ConfigError, match="4 held-out examples for 8 devices"):
        HeldOut(tiny.prepare(8, training__eval_examples=4))
