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
    expected = jax.jit(theirs.apply)(params, x)
    np.testing.assert_allclose(jax.jit(ours.apply)(params, x), expected, atol=2e-3 if offset else 2e-5)
    scale, shift = jax.random.normal(jax.random.key(1), (2, 2, 12))
    adapted = expected * (1 + scale[:, None, None]) + shift[:, None, None]
    found = jax.jit(ours.apply)(params, x, scale, shift)
    np.testing.assert_allclose(found, adapted, atol=5e-3 if offset else 5e-5)


def test_initial_values_are_those_of_jax():
    """The draws along one axis are the numbers that `jax.nn.initializers` give, and their scale is the papers'."""
    key = jax.random.key(3)
    for shape in ((2, 5, 7), (4, 9)):
        expected = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")(key, shape)
        np.testing.assert_array_equal(layers.dense_init()(key, shape), expected)
        np.testing.assert_array_equal(layers.normal_init(2.0)(key, shape), jax.nn.initializers.normal(2.0)(key, shape))
    np.testing.assert_array_equal(layers.dense_init(0.0)(key, (2, 2)), 0)


def test_dropout_keeps_the_mean_and_is_linens():
    x = jnp.ones((4, 50, 50, 2))
    rngs = {"dropout": jax.random.key(0)}
    out = layers.Dropout(0.25).apply({}, x, True, rngs=rngs)
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert abs(out.mean() - 1) < 5 * (1 / 3 / x.size) ** 0.5
    np.testing.assert_allclose(out, nn.Dropout(0.25).apply({}, x, deterministic=False, rngs=rngs), rtol=1e-6)


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


def parameters_of(module, *args):
    """Random ones, none zero."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(0.4 * rng.standard_normal(leaf.shape)), shapes)


def test_attention_is_softmax_of_scaled_products():
    block = blocks.AttentionBlock(heads=2, groups=4, epsilon=1e-5, dtype=jnp.float32)
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 3, 8)))
    text = {"tokens": np.float32(np.random.default_rng(1).standard_normal((2, 3, 6))), "mask": np.ones((2, 3), bool)}
    for tokens in (None, text):
        p = parameters_of(block, x, tokens)
        project = lambda name, y, p=p: y @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
        normed = nn.GroupNorm(4, epsilon=1e-5).apply({"params": p["norm"]}, x).reshape(2, 9, 8)
        q, k, v = np.split(project("qkv", np.asarray(normed)), 3, -1)
        if tokens:
            row = text["tokens"]
            row = (row - row.mean(-1, keepdims=True)) / np.sqrt(row.var(-1, keepdims=True) + 1e-5)
            more = np.split(project("text_kv", row * p["text_norm"]["scale"] + p["text_norm"]["bias"]), 2, -1)
            k, v = np.concatenate([k, more[0]], 1), np.concatenate([v, more[1]], 1)
        q, k, v = (part.reshape(2, -1, 2, 4) for part in (q, k, v))
        weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / 2.0)
        weights /= weights.sum(-1, keepdims=True)
        out = project("out", np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 9, 8))
        found = jax.jit(block.apply)({"params": p}, x, tokens)
        np.testing.assert_allclose(found, x + out.reshape(x.shape), atol=2e-5)


@pytest.mark.parametrize(
    ("conditioning", "resample"), [("adagn", None), ("additive", None), ("adagn", "down"), ("adagn", "up")]
)
def test_residual_block_by_hand(conditioning, resample):
    """Against explicit convolutions, Flax's norm, and resampling by numpy."""
    block = blocks.ResidualBlock(8, 2, 1e-5, conditioning, 0.0, jnp.float32, resample, skip_scale=0.5)
    x, emb = (np.asarray(jax.random.normal(jax.random.key(i), s)) for i, s in enumerate([(2, 4, 4, 6), (2, 5)]))
    p = parameters_of(block, x, emb, False)
    silu = lambda y: y / (1 + np.exp(-y))  # noqa: E731
    norm = lambda name, y: np.asarray(nn.GroupNorm(2, epsilon=1e-5).apply({"params": p[name]}, y))  # noqa: E731

    def conv(name, y):
        dims = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(y, p[name]["kernel"], (1, 1), "SAME", dimension_numbers=dims)
        return np.asarray(out) + p[name]["bias"]

    resize = {
        None: lambda y: y,
        "up": lambda y: y.repeat(2, 1).repeat(2, 2),
        "down": lambda y: (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4,
    }[resample]
    h = conv("conv_in", resize(silu(norm("norm_in", x))))
    injected = (silu(emb) @ p["emb"]["kernel"] + p["emb"]["bias"])[:, None, None]
    if conditioning == "adagn":
        h = norm("norm_out", h) * (1 + injected[..., :8]) + injected[..., 8:]
    else:
        h = norm("norm_out", h + injected)
    expected = (conv("conv_out", silu(h)) + conv("shortcut", resize(x))) * 0.5
    found = jax.jit(block.apply, static_argnums=3)({"params": p}, x, emb, False)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
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
