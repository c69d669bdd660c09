"""Layers against Flax, numpy and explicit convolutions."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax import models
from diffusion_jax.models import blocks, layers


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_group_norm_is_flax_group_norm(offset):
    """Also far from zero, where one-pass variances lose their digits."""
    x = offset + jax.random.normal(jax.random.key(0), (2, 5, 7, 12)) * jnp.arange(1, 13)
    ours, theirs = layers.GroupNorm(4, 1e-5), nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)
    params = {"params": {"scale": jnp.linspace(0.5, 2, 12), "bias": jnp.linspace(-1, 1, 12)}}
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=2e-3 if offset else 2e-5)


@given(st.floats(0, 1000), st.sampled_from([6, 7, 16]))
def test_sinusoidal_embeddings(value, dim):
    half = dim // 2
    ddpm = np.exp(-np.log(1e4) * np.arange(half) / (half - 1)) * np.float32(value)
    adm = np.exp(-np.log(1e4) * np.arange(half) / half) * np.float32(value)
    pad = np.zeros(dim - 2 * half)
    for flavour, expected in (
        ("ddpm", [np.sin(ddpm), np.cos(ddpm), pad]),
        ("adm", [np.cos(adm), np.sin(adm), pad]),
    ):
        found = layers.sinusoidal_embedding(jnp.array([value]), dim, flavour)[0]
        np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-4)


@pytest.mark.parametrize(("padding", "pads"), [("same", (0, 1)), ("symmetric", (1, 1))])
def test_downsampling_pads(padding, pads):
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
    layer = layers.Downsample(padding, jnp.float32)
    params = layer.init(jax.random.key(1), x)
    kernel = params["params"]["conv"]["kernel"]
    padded = np.pad(x, ((0, 0), pads, pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded[0], (3, 3), axis=(0, 1))[::2, ::2]
    expected = np.einsum("ijchw,hwco->ijo", windows, kernel)
    np.testing.assert_allclose(layer.apply(params, x)[0], expected, atol=1e-5)


def test_resampling():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    np.testing.assert_array_equal(layers.downsample_average(layers.upsample_nearest(x)), x)
    np.testing.assert_array_equal(layers.upsample_nearest(x), x.repeat(2, 1).repeat(2, 2))


def test_attention_is_softmax_of_scaled_products():
    block = blocks.AttentionBlock(heads=2, groups=4, epsilon=1e-5, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    params = block.init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)
    p = jax.tree.map(np.asarray, params["params"])
    normed = nn.GroupNorm(4, epsilon=1e-5).apply({"params": p["norm"]}, x).reshape(2, 9, 8)
    qkv = np.asarray(normed) @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    q, k, v = (part.reshape(2, 9, 2, 4) for part in np.split(qkv, 3, -1))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2.0
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 9, 8) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(block.apply(params, x), x + out.reshape(x.shape), atol=1e-5)


def test_activations_are_constrained_where_the_trainer_says():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    network = models.unet(8, in_channels=1, channels=8, groups=4, multipliers=(1,), attention_resolutions=())
    lower = lambda: jax.jit(network.apply).lower(network.shapes(), *network.example_inputs(8)).as_text()  # noqa: E731
    assert "sharding_constraint" not in lower() and "@Sharding" not in lower()
    with models.activation_sharding(rows):
        jax.clear_caches()
        text = lower()
    assert "sharding_constraint" in text or "@Sharding" in text
