"""DDPM++ and NCSN++: what reaches the output, filters by hand, and numerics; PyTorch's values are in tests/interop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from diffusion_jax import models
from diffusion_jax.errors import ConfigError
from diffusion_jax.models.layers import downsample, upsample
from diffusion_jax.models.score_sde_unet import fourier_frequencies, song_unet
from tests.models.helpers import inputs, perturbed

TINY = dict(image_size=8, in_channels=2, channels=8, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
NCSNPP = dict(embedding="fourier", pyramid=True, resample_filter=(1, 3, 3, 1))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_filters_by_hand(taps):
    """Beside scipy's full convolution of the image, with zeros around it and between its pixels."""
    x = np.random.default_rng(0).normal(size=(1, 6, 8, 2)).astype(np.float32)
    kernel = np.outer(taps, taps) / sum(taps) ** 2
    reach = len(taps) // 2
    for channel in range(2):
        plane = x[0, :, :, channel]
        full = signal.convolve2d(plane, kernel)  # symmetric, so it is correlation too
        # Halving: the window of output 0 begins reach - 1 pixels before the image.
        np.testing.assert_allclose(
            downsample(x, taps)[0, :, :, channel], full[reach : reach + 6 : 2, reach : reach + 8 : 2], atol=1e-6
        )
        spread = np.zeros((12, 16))
        spread[::2, ::2] = plane
        doubled = 4 * signal.convolve2d(spread, kernel)[reach - 1 : reach + 11, reach - 1 : reach + 15]
        np.testing.assert_allclose(upsample(x, taps)[0, :, :, channel], doubled, atol=1e-6)


def test_filters_keep_the_brightness():
    ones = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(downsample(ones, (1, 3, 3, 1))[0, 1:-1, 1:-1], 1, atol=1e-6)
    np.testing.assert_allclose(upsample(ones, (1, 3, 3, 1))[0, 2:-2, 2:-2], 1, atol=1e-6)


@pytest.mark.parametrize("fields", [{"num_classes": 3, "augment_dim": 9}, NCSNPP], ids=["ddpmpp", "ncsnpp"])
def test_every_input_reaches_the_output(fields):
    network = song_unet(**TINY, **fields)
    params, (x, noise, cond) = perturbed(network), inputs(network)
    noise = noise / 300
    apply = jax.jit(network.apply)
    out = apply(params, x, noise, cond)
    assert out.shape == x.shape and out.dtype == jnp.float32 and np.isfinite(out).all()
    assert np.abs(out - apply(params, x, noise + 0.3, cond)).max() > 1e-4
    for key, value in cond.items():
        other = value - 1 if key == "label" else -value
        assert np.abs(out - apply(params, x, noise, cond | {key: other})).max() > 1e-5, key
    if "label" in cond:  # beyond the classes is no label: the embedding's bias alone
        null = apply(params, x, noise, cond | {"label": np.array([3, 3])})
        bare = jax.tree.map(lambda leaf: leaf, params)
        bare["label_embedding"] = {"kernel": 0 * params["label_embedding"]["kernel"], "bias": params["label_embedding"]["bias"]}
        np.testing.assert_allclose(null, apply(bare, x, noise, cond), atol=1e-5)


def test_the_null_class_has_no_weights():
    plain, with_null = (song_unet(**TINY, num_classes=3, null_class=null).num_params() for null in (False, True))
    assert plain == with_null


@pytest.mark.slow
def test_a_fresh_network_is_all_but_silent():
    """The last layer of each branch, and of all, starts at 1e-5 of its usual size."""
    network = song_unet(**TINY)
    params = network.init(jax.random.key(0))
    x, noise, cond = inputs(network)
    assert 0 < np.abs(jax.jit(network.apply)(params, x, noise, cond)).max() < 1e-3
    wide = 8 * 9  # inputs of the head: uniform within sqrt(6 / (fan in + fan out)) of 1e-5
    bound = 1e-5 * np.sqrt(6 / (wide + 2 * 9))
    head = np.abs(params["head"]["kernel"])
    assert 0.8 * bound < head.max() <= bound * 1.0001


@pytest.mark.slow
def test_half_precision_and_remat_change_little():
    plain = song_unet(**TINY, **NCSNPP)
    params, (x, noise, cond) = perturbed(plain), inputs(plain)
    noise = noise / 300
    out = jax.jit(plain.apply)(params, x, noise, cond)
    other = song_unet(**TINY, **NCSNPP, dtype="bfloat16", remat=True)
    assert jax.tree.structure(other.shapes()) == jax.tree.structure(plain.shapes())
    found = jax.jit(other.apply)(params, x, noise, cond)
    assert found.dtype == jnp.float32 and np.abs(found - out).max() < 0.1 * np.abs(out).max()


def test_frequencies_are_of_the_network_and_stay():
    """They are no parameters: two networks agree, and published weights bring their own."""
    assert fourier_frequencies(16) == fourier_frequencies(16) and len(fourier_frequencies(16)) == 8
    assert 12 < np.std(fourier_frequencies(4096)) < 20
    network = song_unet(**TINY, embedding="fourier")
    params, (x, noise, cond) = perturbed(network), inputs(network)
    moved = song_unet(**TINY, embedding="fourier", frequencies=tuple(np.arange(8.0)))
    assert jax.tree.structure(moved.shapes()) == jax.tree.structure(network.shapes())
    a, b = (jax.jit(n.apply)(params, x, noise / 300, cond) for n in (network, moved))
    assert np.abs(a - b).max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 6}, "6 channels do not divide into its groups; use a multiple of 4"),
        ({"channels": 132}, "use a multiple of 32"),
        ({"embedding": "furier"}, "did you mean 'fourier'"),
        ({"resample_filter": (1, 2, 1)}, r"\(1, 1\) or \(1, 3, 3, 1\)"),
        ({"null_class": True}, "needs num_classes"),
        ({"dropout": 1.0}, "dropout must be a number in"),
        ({"image_size": 9}, "not divisible by 2"),
        ({"embedding": "fourier", "frequencies": (1.0, 2.0)}, "8 channels need as many frequencies, got 2"),
        ({"frequencies": (1.0,)}, "those of embedding='fourier'"),
    ],
)
def test_misfits_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        song_unet(**TINY | fields)


def test_presets_take_every_field():
    network = models.edm_ncsnpp_cifar10(num_classes=10, augment_dim=0, channels=32)
    assert network.cond_keys == {"label"} and network.module.pyramid and network.module.taps == (1, 3, 3, 1)


def test_published_dropout():
    """Karras et al. 2022, appendix F.2: CIFAR-10 in both forms, the faces at 64 pixels, and ImageNet."""
    published = {"edm_ddpmpp_cifar10": 0.13, "edm_ncsnpp_cifar10": 0.13, "edm_ddpmpp64": 0.05, "edm_ncsnpp64": 0.05}
    for name, rate in {**published, "edm_adm64": 0.1}.items():
        assert getattr(models, name)().module.dropout == rate, name
