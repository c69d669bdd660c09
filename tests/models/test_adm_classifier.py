"""The noisy classifier: published counts, the attention pool beside one written in PyTorch, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError
from diffusion_jax.models.classifiers import AttentionPool, unet_classifier
from tests.tiny_systems import randomize

COUNTS = {64: 65_438_568, 128: 42_568_040, 256: 54_096_360, 512: 54_448_360}
TINY = {"image_size": 8, "in_channels": 1, "num_classes": 5, "channels": 8, "multipliers": (1, 2), "num_res_blocks": 1,
        "attention_resolutions": (4,), "head_channels": 8, "groups": 4}  # fmt: skip


@pytest.mark.parametrize("size", COUNTS)
def test_published_counts(size):
    network = getattr(models, f"adm_classifier{size}")()
    assert network.num_params() == COUNTS[size]
    positions = network.shapes()["pool"]["positions"].shape
    assert positions == (65, {64: 512, 128: 512, 256: 512, 512: 512}[size])  # the mean, and 8x8 positions


def _peer(torch, weights, x, heads):
    """The pool in channels-first PyTorch, head by head, from its description: softmax(q k / sqrt(d)) v of all tokens."""
    batch, channels = x.shape[:2]
    flat = x.reshape(batch, channels, -1)
    tokens = torch.cat([flat.mean(-1, keepdim=True), flat], -1) + weights["positions"].T[None]
    qkv = torch.nn.functional.conv1d(tokens, weights["qkv"].T[..., None], weights["qkv_bias"])
    width, results = channels // heads, []
    for head in range(heads):
        q, k, v = (qkv[:, part * channels + head * width : part * channels + (head + 1) * width] for part in range(3))
        weight = torch.softmax(q.transpose(1, 2) @ k / width**0.5, -1)  # [B, tokens, tokens]
        results.append(v @ weight.transpose(1, 2))
    out = torch.nn.functional.conv1d(torch.cat(results, 1), weights["out"].T[..., None], weights["out_bias"])
    return out[..., 0]


def test_the_attention_pool_equals_a_peer_in_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 2, 12)).astype(np.float32)
    pool = AttentionPool(heads=3, features=7, dtype=jnp.float32)
    params = randomize(pool.init(jax.random.key(0), x)["params"], 0.5)
    ours = pool.apply({"params": params}, x)
    tensor = lambda leaf: torch.from_numpy(np.array(leaf))  # noqa: E731
    weights = {
        "positions": tensor(params["positions"]),
        "qkv": tensor(params["qkv"]["kernel"]), "qkv_bias": tensor(params["qkv"]["bias"]),
        "out": tensor(params["out"]["kernel"]), "out_bias": tensor(params["out"]["bias"]),
    }  # fmt: skip
    theirs = _peer(torch, weights, torch.from_numpy(x).permute(0, 3, 1, 2), heads=3)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_the_table_of_positions_starts_at_the_published_scale():
    pool = AttentionPool(heads=2, features=3, dtype=jnp.float32)
    table = pool.init(jax.random.key(0), jnp.zeros((1, 16, 16, 64)))["params"]["positions"]
    assert table.shape == (257, 64) and float(table.std()) == pytest.approx(64**-0.5, rel=0.03)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_every_pool_reads_image_and_noise_level(pool):
    network = unet_classifier(**TINY, pool=pool)
    params = randomize(jax.jit(network.init)(jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 1)), jnp.float32)
    run = jax.jit(network.apply)
    logits = run(params, x, jnp.array([10.0, 10.0]))
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    assert np.abs(run(params, x, jnp.array([10.0, 700.0]))[1] - logits[1]).max() > 1e-3
    if pool == "spatial":  # stem 8, block 8, resampling 8, block 16, middle 16: the mean of every part
        assert params["pool_in"]["kernel"].shape == (56, 2048)


def test_the_encoder_has_the_names_and_shapes_of_the_unet():
    fields = {key: value for key, value in TINY.items() if key != "num_classes"}
    unet = models.unet(**fields, resample="resblock").shapes()
    classifier = unet_classifier(**TINY).shapes()
    for name, part in classifier.items():
        if not name.startswith("pool"):
            assert jax.tree.map(lambda leaf: leaf.shape, part) == jax.tree.map(lambda leaf: leaf.shape, unet[name])
    assert {name for name in unet if name.startswith(("down", "middle", "stem", "time"))} <= set(classifier)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="pool must be one of .*did you mean 'attention'"):
        unet_classifier(**TINY, pool="attn")
    with pytest.raises(ConfigError, match="num_classes must be a whole number at least 1"):
        unet_classifier(**{**TINY, "num_classes": 0})
    with pytest.raises(ConfigError, match="head_channels=16 does"):
        unet_classifier(**{**TINY, "head_channels": 64})
