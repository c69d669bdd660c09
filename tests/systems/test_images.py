"""Images between their forms, against PIL and scipy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import images


def test_bytes_survive_the_round_trip():
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(images.to_uint8(images.to_float(every)), every)


def test_export_rounds_to_the_nearest_and_clips():
    # Thirds of a step from the bytes 10 and 11, and the one tie that float32 can hold, at 127.5.
    thirds = jnp.array([10 + 1 / 3, 10 + 2 / 3]) / 127.5 - 1
    assert np.asarray(images.to_uint8(thirds)).tolist() == [10, 11]
    assert np.asarray(images.to_uint8(jnp.array([-3.0, 0.0, 3.0]))).tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("method", "pil"),
    [("area", Image.Resampling.BOX), ("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_downsample_is_pils_anti_aliased_resize(method, pil):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 24, 24, 3)).astype(np.float32)
    ours = images.downsample(x, (8, 8), method)
    for image, small in zip(x, ours, strict=True):
        for channel in range(3):
            theirs = np.asarray(Image.fromarray(image[..., channel], mode="F").resize((8, 8), pil))
            np.testing.assert_allclose(small[..., channel], theirs, atol=2e-6)


def test_area_needs_integer_factors():
    with pytest.raises(ConfigError, match="integer factors"):
        images.downsample(jnp.zeros((1, 9, 9, 1)), (4, 4), "area")


def test_blur_is_a_3x3_gaussian_filter_of_each_images_own_width():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 7, 9, 2)).astype(np.float32)
    sigma = np.array([0.0, 0.4, 0.9], np.float32)
    ours = np.asarray(images.blur(jnp.asarray(x), jnp.asarray(sigma)))
    np.testing.assert_array_equal(ours[0], x[0])
    yy, xx = np.mgrid[-1:2, -1:2]
    for index in (1, 2):
        kernel = np.exp(-(yy**2 + xx**2) / (2 * sigma[index] ** 2))
        theirs = ndimage.correlate(x[index], (kernel / kernel.sum())[..., None], mode="nearest")
        np.testing.assert_allclose(ours[index], theirs, atol=1e-6)
