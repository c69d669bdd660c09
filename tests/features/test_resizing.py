"""Resizes against the tools that they are named after, and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import ConfigError
from diffusion_jax.features.resizing import NAMES, bicubic_matrix, bilinear_matrix, preprocessing
from tests.peers import peer

SIZES = [(32, 32), (256, 256), (299, 299), (301, 301), (40, 64), (598, 17)]
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def images(height, width, count=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def channels_first(x):
    return peer("torch").from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def channels_last(x):
    return x.numpy().transpose(0, 2, 3, 1)


def test_two_pixels_become_four():
    """TensorFlow 1 samples at 0, 1/2, 1, 3/2 and repeats the end; PyTorch at -1/4, 1/4, 3/4, 5/4 and clamps."""
    np.testing.assert_array_equal(bilinear_matrix(2, 4, half_pixel=False), [[1, 0], [0.5, 0.5], [0, 1], [0, 1]])
    np.testing.assert_array_equal(bilinear_matrix(2, 4, half_pixel=True), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_four_pixels_become_two():
    """Without antialiasing TensorFlow 1 takes every second pixel; the cubic filter is eight pixels wide."""
    np.testing.assert_array_equal(bilinear_matrix(4, 2, half_pixel=False), [[1, 0, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(bilinear_matrix(4, 2, half_pixel=True), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    keys = np.array([0.8671875, 0.2265625, -0.0703125, -0.0234375])  # a = -1/2 at 1/4, 3/4, 5/4, 7/4
    row = np.array([keys[0], keys[0], keys[1], keys[2]])
    np.testing.assert_allclose(bicubic_matrix(4, 2)[0], row / row.sum(), rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_tf1_is_what_torch_fidelity_ports(size):
    module = peer("torch_fidelity.interpolate_compat_tensorflow")
    x = images(*size)
    theirs = module.interpolate_bilinear_2d_like_tensorflow1x(channels_first(x).float(), size=(299, 299), align_corners=False)
    np.testing.assert_allclose(preprocessing("tf1", 299)(x), (channels_last(theirs) - 128) / 128, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_pytorch_fid_is_torch_interpolate(size):
    functional = peer("torch.nn.functional")
    x = images(*size)
    theirs = functional.interpolate(channels_first(x).float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(preprocessing("pytorch-fid", 299)(x), 2 * channels_last(theirs) - 1, atol=5e-6)


@pytest.mark.parametrize("size", SIZES)
def test_clean_fid_is_pixel_exact(size):
    resizer = peer("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    x = images(*size)
    found = preprocessing("clean-fid", 299)(x)
    np.testing.assert_array_equal(found, np.stack([(resizer(image) - 128) / 128 for image in x]))


@pytest.mark.parametrize("size", SIZES)
def test_clean_fid_is_the_cubic_filter(size):
    """Not rounded to whole numbers and clipped; Pillow against the filter's formula."""
    x = images(*size, count=1)
    rows, columns = (bicubic_matrix(side, 299).astype(np.float64) for side in size)
    expected = np.einsum("hH,HWc,wW->hwc", rows, x[0], columns, optimize=True).clip(0, 255)
    np.testing.assert_allclose(np.asarray(preprocessing("clean-fid", 299)(x)[0]) * 128 + 128, expected, atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
def test_dinov2_float_is_torch_antialiased(size):
    functional = peer("torch.nn.functional")
    x = images(*size)
    theirs = functional.interpolate(channels_first(x).float(), size=(224, 224), mode="bicubic", antialias=True)
    expected = (channels_last(theirs) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(preprocessing("dinov2-float", 224)(x), expected, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_dinov2_is_pillow(size):
    x = images(*size)
    resized = np.stack([np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in x])
    np.testing.assert_allclose(preprocessing("dinov2", 224)(x), (resized / 255 - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-6)


@pytest.mark.parametrize("name", ["torchvision", "clip"])
@pytest.mark.parametrize("size", [(32, 32), (256, 256), (224, 224), (301, 230), (40, 64), (197, 298)])
def test_short_side_and_crop_are_torchvisions(name, size):
    transforms = peer("torchvision.transforms")
    bicubic, bilinear = transforms.InterpolationMode.BICUBIC, transforms.InterpolationMode.BILINEAR
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    resize = transforms.Resize(224, bicubic) if name == "clip" else transforms.Resize(256, bilinear)
    normalise = transforms.Normalize(mean, std) if name == "clip" else transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    whole = transforms.Compose([resize, transforms.CenterCrop(224), transforms.ToTensor(), normalise])
    x = images(*size)
    theirs = np.stack([whole(Image.fromarray(image)).numpy().transpose(1, 2, 0) for image in x])
    np.testing.assert_allclose(preprocessing(name, 224)(x), theirs, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_flat_image_stays_flat(name):
    found = np.asarray(preprocessing(name, 64)(np.full((1, 50, 90, 3), 200, np.uint8)))
    assert found.shape == (1, 64, 64, 3) and found.dtype == np.float32
    assert np.ptp(found, axis=(0, 1, 2)).max() < 1e-5


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match="did you mean 'clean-fid'.*pytorch-fid"):
        preprocessing("cleanfid", 299)
