"""Images that are not square: every conditioner trains and samples on them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffusion_jax.systems import Sampling, check_request, request_of, to_uint8
from tests.tiny_systems import NETWORK, loss_of, make_batch, make_generation, randomize, start

SIDES = (8, 12)
RECTANGLES = {
    "labels": {},
    "low_res": {"more": {"low_res": {"size": (4, 6), "crop_size": (4, 8)}}},
    "image": {"labels": None, "more": {"image": {"feed_mask": True}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECTANGLES)
def test_rectangles_train_and_sample(name):
    system = make_generation(SIDES, network={**NETWORK, "channels": 4, "groups": 2}, **RECTANGLES[name])
    missing = np.zeros((4, *SIDES, 1), np.uint8)
    missing[:, :, 6:] = 255
    batch = make_batch(SIDES, 4)
    batch |= {"degraded": batch["image"], "missing": missing}
    params = randomize(start(system))

    @jax.jit
    def both(params, batch, key):
        request = request_of(system, batch)
        samples = system.sample(params, key, request, np.arange(4), Sampling(solver="ddim", steps=2))
        return loss_of(system, params, batch, key)[0], request, samples

    value, request, samples = both(params, batch, jax.random.key(0))
    check_request(system, request)
    assert np.isfinite(value) and samples.shape == (4, *SIDES, 1) and np.isfinite(samples).all()
    if name == "low_res":
        assert request["low_res"].shape == (4, 4, 6, 1)
    if name == "image":
        np.testing.assert_array_equal(np.asarray(to_uint8(samples))[:, :, :6], batch["image"][:, :, :6])
