"""Pixels between bytes and floats."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.spec import Spec
from diffusion_jax.systems import Pixels, to_float, to_uint8


def test_bytes_survive_the_round_trip():
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_uint8(to_float(every)), every)


def test_export_rounds_to_the_nearest_and_clips():
    # Thirds of a step from the bytes 10 and 11, and the one tie that float32 can hold, at 127.5.
    thirds = jnp.array([10 + 1 / 3, 10 + 2 / 3]) / 127.5 - 1
    assert np.asarray(to_uint8(thirds)).tolist() == [10, 11]
    assert np.asarray(to_uint8(jnp.array([-3.0, 0.0, 3.0]))).tolist() == [0, 128, 255]


def test_pixels_decode_what_they_encode():
    codec, images = Pixels(), np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    x = codec.encode({}, {"image": images}, jax.random.key(0))
    assert x.dtype == jnp.float32 and codec.range == (-1, 1) and codec.spec(Spec((4, 6, 3))) == Spec((4, 6, 3))
    np.testing.assert_array_equal(codec.decode({}, x), images)
    np.testing.assert_array_equal(codec.decode({}, x, quantize=False), x)
    np.testing.assert_array_equal(codec.encode({}, {"image": x}, jax.random.key(0)), x)  # floats pass
