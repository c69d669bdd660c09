"""Networks that cannot be built, and inputs that they cannot take: one error each, before anything is traced."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import build
from tests.models.helpers import inputs, tiny


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 9}, "image_size 9 is not divisible by 2.*use 8 or 10"),
        ({"image_size": 3, "multipliers": (1, 1, 1)}, "not divisible by 4.*use 4, or fewer"),
        (
            {"image_size": (12, 18), "multipliers": (1, 1, 1)},
            "12x18 is not divisible by 4.*use 12x16 or 12x20",
        ),
        ({"image_size": (2, 6), "multipliers": (1, 1, 1)}, "image_size 2x6 .* use 4x8, or fewer"),
        ({"image_size": 0}, "image_size must be a positive whole number of pixels, or .height, width., got 0"),
        ({"image_size": (8, 8, 8)}, "image_size must be a positive whole number of pixels, or .height, width., got .8, 8, 8."),
        ({"groups": 3}, "do not divide into 3 groups; groups=2 does"),
        ({"groups": 0}, "groups must be a whole number at least 1"),
        ({"num_heads": 3}, "16 channels do not divide into num_heads=3; num_heads=2 does"),
        ({"num_heads": 0}, "num_heads must be a whole number at least 1"),
        ({"head_channels": 5}, "head_channels=5; head_channels=4 does"),
        ({"head_channels": 0}, "head_channels must be a whole number at least 1"),
        ({"num_res_blocks": (1, 2, 3)}, "num_res_blocks has 3 entries, multipliers has 2"),
        ({"num_res_blocks": 0}, "num_res_blocks must be a whole number at least 1"),
        ({"multipliers": (), "num_res_blocks": 1}, "multipliers is empty"),
        ({"multipliers": (1, 1.3)}, r"8 \* 1.3 is not a whole positive number"),
        ({"conditioning": "adagm"}, "conditioning must be one of 'adagn', 'additive', got 'adagm'; did you mean 'adagn'"),
        ({"resample": "pool"}, "resample must be one of 'conv', 'resblock', got 'pool'"),
        ({"embedding": "fourier"}, "embedding must be one of .*, got 'fourier'"),
        ({"down_padding": "valid"}, "down_padding must be one of .*, got 'valid'"),
        ({"low_res_method": "bilinaer"}, "did you mean 'bilinear'"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"null_class": True}, "null_class needs num_classes"),
        ({"num_classes": -1}, "num_classes must be a whole number at least 0"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**fields)


def test_attention_at_a_size_never_reached_is_no_error():
    """ADM's 128 -> 512 upsampler lists one."""
    assert tiny(attention_resolutions=(16, 4, 1)).num_params() == tiny().num_params()


def test_misspelt_fields_of_configurations_are_named():
    for name in ("unet", "unet_ddpm_cifar10"):
        with pytest.raises(ConfigError, match=f"'{name}' has no field 'chanels'; did you mean 'channels'"):
            build("network", {"name": name, "image_size": 32, "chanels": 3})
    with pytest.raises(ConfigError, match="needs the field 'image_size'"):
        build("network", "unet")


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        ({"num_classes": 3}, lambda c: {"labels": c["label"]}, r"missing \['label'\], not known \['labels'\]"),
        ({"num_classes": 3}, lambda c: {}, r"takes the conditioning \['label'\]: missing \['label'\]"),
        ({}, lambda c: {"label": np.zeros(2, int)}, r"takes the conditioning none: .*not known \['label'\]"),
        ({"num_classes": 3}, lambda c: {"label": c["label"][:1]}, r"'label' must have the shape \[2\], got \[1\]"),
        ({"num_classes": 3}, lambda c: {"label": np.zeros(2)}, "'label' must be of an integer type, got float"),
        ({"low_res_channels": 2}, lambda c: {"low_res": c["low_res"][..., :1]}, r"'low_res' .* shape \[2, 4, 4, 2\]"),
        ({"image_channels": 2}, lambda c: {"image": c["image"][:, :4]}, r"'image' is of the size \(4, 8\)"),
        ({"context_dim": 6}, lambda c: {"text": c["text"]["tokens"]}, r"'text' needs the entries \['mask', 'tokens'\]"),
        ({"context_dim": 6}, lambda c: {"text": {"tokens": c["text"]["tokens"]}}, r"'text' .*missing \['mask'\]"),
        ({"context_dim": 6}, lambda c: {"text": c["text"] | {"pooled": 0}}, r"'text' .*not known \['pooled'\]"),
        (
            {"context_dim": 6, "context_length": 5},
            lambda c: {"text": c["text"] | {"mask": c["text"]["mask"][:, :3]}},
            r"mask is of the shape \(2, 3\), its tokens \(2, 5\)",
        ),
    ],
)  # fmt: skip
def test_wrong_conditioning_is_named(fields, change, message):
    network = tiny(**fields)
    x, noise, cond = inputs(network)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(network.apply, network.shapes(), x, noise, change(cond))


def test_wrong_images_and_noise_levels_are_named():
    network = tiny()
    x, noise, _ = inputs(network)
    for wrong, level, message in [
        (x[..., :1], noise, r"images \[B, H, W, 2\], got the shape \(2, 8, 8, 1\)"),
        (x[0], noise, "images"),
        (x[:, :7], noise, r"\(7, 8\) is not divisible by 2"),
        (x, noise[0], r"a noise level for each image, \[2\], got the shape \(\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(network.apply, network.shapes(), wrong, level)


def test_images_too_small_or_of_another_shape_for_the_classifier():
    with pytest.raises(ConfigError, match="at least 8 pixels, got 7"):
        models.small_classifier(7, 1, 10)
    network = models.small_classifier(8, 1, 10)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"shape \(8, 8, 1\), got \(9, 9, 1\)"):
        jax.eval_shape(network.apply, params, np.zeros((1, 9, 9, 1), np.float32))
