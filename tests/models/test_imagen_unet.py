"""Imagen's networks: text as keys and pooled, the Efficient U-Net on sizes that it was not made for."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError
from diffusion_jax.models.blocks import TextAttention, TextPool
from tests.models.helpers import TINY, inputs, perturbed
from tests.peers import peer
from tests.tiny_systems import randomize

SMALL = dict(
    image_size=16, in_channels=2, channels=8, groups=4, multipliers=(1, 2), num_res_blocks=(1, 1), strides=(1, 2), num_heads=2,
    low_res_channels=2, aug_level=True, context_dim=5, context_length=4,
)  # fmt: skip
FLAGS = {
    "self": {"self_attention": (False, True), "text_attention": (False, True)},
    "cross": {"self_attention": (False, False), "text_attention": (False, True)},
}


def small(kind, **fields):
    return models.efficient_unet(**(SMALL | FLAGS[kind] | fields))


def text_unet(**fields):
    return models.text_unet(**(TINY | {"context_dim": 5, "context_length": 4} | fields))


NETWORKS = {"self": lambda: small("self"), "cross": lambda: small("cross"), "base": text_unet}


@pytest.mark.parametrize(
    ("name", "count", "published"),
    [
        pytest.param("unet_imagen_base64", 2_416_613_379, 2.0e9, marks=pytest.mark.slow),
        ("unet_imagen_sr256", 496_647_939, 6e8),
        ("unet_imagen_sr1024", 488_251_139, 4e8),
    ],
)
def test_the_three_sizes(name, count, published):
    """The paper leaves the embeddings' layout open: its rounded counts are near, not met."""
    assert getattr(models, name)().num_params() == count
    assert abs(count / published - 1) < 0.25


@pytest.mark.parametrize("kind", NETWORKS)
def test_text_is_a_set_of_unmasked_tokens(kind):
    network = NETWORKS[kind]()
    params = perturbed(network)
    x, noise, cond = inputs(network)
    tokens, mask = np.random.default_rng(1).standard_normal((2, 4, 5)).astype(np.float32), np.array([[1, 1, 1, 0]] * 2, bool)
    apply = jax.jit(network.apply)
    out = lambda tokens, mask: np.asarray(apply(params, x, noise, {**cond, "text": {"tokens": tokens, "mask": mask}}))  # noqa: E731
    expected = out(tokens, mask)
    hidden, other = tokens.copy(), tokens.copy()
    hidden[:, 3] += 7
    other[:, 0] += 7 * np.arange(5)
    np.testing.assert_array_equal(out(hidden, mask), expected)
    assert np.abs(out(other, mask) - expected).max() > 1e-3
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(out(tokens[:, order], mask[:, order]), expected, atol=2e-4)
    # Longer sequences are taken too, and what lies beyond the mask does not matter.
    longer = np.pad(tokens, ((0, 0), (0, 3), (0, 0)), constant_values=5), np.pad(mask, ((0, 0), (0, 3)))
    np.testing.assert_allclose(out(*longer), expected, atol=2e-4)


def _attended(torch, query, key, value, seen, heads=2):
    """Heads side by side in the features; every query sees the same keys."""
    split = lambda part: part.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    parts = (split(part) for part in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=seen[:, None, None]).transpose(1, 2).flatten(2)


def _in_torch(module, *inputs):
    """(parameters, moved from their initial values; the output; the parameters in PyTorch, with a linear layer by name)."""
    torch = peer("torch")
    params = randomize(module.init(jax.random.key(0), *inputs)["params"], 0.5)
    theirs = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), params)
    linear = lambda name, h: torch.nn.functional.linear(h, theirs[name]["kernel"].T, theirs[name]["bias"])  # noqa: E731
    return module.apply({"params": params}, *inputs), theirs, linear


def _affine(part):
    return part["scale"], part["bias"]


TEXT = {
    "tokens": np.random.default_rng(3).standard_normal((2, 4, 5)).astype(np.float32),
    "mask": np.array([[1, 1, 0, 1], [1, 0, 0, 0]], bool),
}


@pytest.mark.parametrize("own", [True, False])
def test_text_attention_equals_a_peer_in_pytorch(own):
    torch = peer("torch")
    x = np.random.default_rng(4).standard_normal((2, 3, 2, 8)).astype(np.float32)
    found, params, linear = _in_torch(TextAttention(2, own, 4, 1e-5, jnp.float32), x, TEXT)
    norm = torch.nn.functional.group_norm(torch.from_numpy(x).movedim(-1, 1), 4, *_affine(params["norm"]), eps=1e-5)
    flat = norm.flatten(2).transpose(1, 2)
    tokens = torch.nn.functional.layer_norm(torch.from_numpy(TEXT["tokens"]), (5,), *_affine(params["text_norm"]), eps=1e-5)
    pairs, seen = (
        [params["null_kv"].expand(2, 1, -1), linear("text_kv", tokens)],
        [torch.ones(2, 1), torch.from_numpy(TEXT["mask"])],
    )
    if own:
        pairs, seen = [*pairs, linear("own_kv", flat)], [*seen, torch.ones(2, 6)]
    key, value = torch.cat(pairs, 1).chunk(2, -1)
    out = linear("out", _attended(torch, linear("query", flat), key, value, torch.cat(seen, 1).bool()))
    np.testing.assert_allclose(found, x + out.numpy().reshape(x.shape), atol=1e-4)


def test_pooled_text_equals_a_peer_in_pytorch():
    torch = peer("torch")
    found, params, linear = _in_torch(TextPool(6, heads=2), TEXT)
    tokens = torch.nn.functional.layer_norm(torch.from_numpy(TEXT["tokens"]), (5,), *_affine(params["norm"]), eps=1e-5)
    seen = torch.from_numpy(TEXT["mask"])
    mean = torch.stack([row[real].mean(0, keepdim=True) for row, real in zip(tokens, seen, strict=True)])
    key, value = linear("kv", torch.cat([mean, tokens], 1)).chunk(2, -1)
    pooled = _attended(torch, linear("query", mean), key, value, torch.cat([torch.ones(2, 1).bool(), seen], 1))
    np.testing.assert_allclose(found, linear("out", pooled)[:, 0].numpy(), atol=1e-4)


def test_every_input_reaches_the_output():
    network = small("self", num_classes=3)
    params, (x, noise, cond), apply = perturbed(network), inputs(network), jax.jit(network.apply)
    expected = apply(params, x, noise, cond)
    assert np.abs(apply(params, x, noise + 100, cond) - expected).max() > 1e-3
    for name, other in {"aug_level": 100 + cond["aug_level"], "label": 0 * cond["label"], "low_res": -cond["low_res"]}.items():
        assert np.abs(apply(params, x, noise, {**cond, name: other}) - expected).max() > 1e-3, name


def test_skips_are_weighed_by_the_root_of_a_half():
    """The first block on the way up is given what came up and, beside it, what went down."""
    network = small("cross")
    params, (x, noise, cond), seen = perturbed(network), inputs(network), {}

    def record(following, args, kwargs, context):
        seen[context.module.name] = (args[0], following(*args, **kwargs))
        return seen[context.module.name][1]

    @jax.jit
    def run(params):
        with nn.intercept_methods(record):
            network.apply(params, x, noise, cond)
        return seen["down0_0"][1], seen["up0_0"][0]

    down, up = run({**params, "up0_emb": jax.tree.map(np.zeros_like, params["up0_emb"])})
    np.testing.assert_allclose(up[..., -down.shape[-1] :], down * 0.5**0.5, rtol=1e-4)


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_low_resolution_is_enlarged_by_the_method(method):
    """What PyTorch enlarges gives the same output."""
    network = small("cross", low_res_method=method)
    params, (x, noise, cond), apply = perturbed(network), inputs(network), jax.jit(network.apply)
    low_res = peer("torch").from_numpy(np.array(cond["low_res"])).movedim(-1, 1)
    large = peer("torch").nn.functional.interpolate(low_res, size=x.shape[1:3], mode=method).movedim(1, -1).numpy()
    expected = apply(params, x, noise, {**cond, "low_res": large})
    np.testing.assert_allclose(apply(params, x, noise, cond), expected, atol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.slow
def test_no_text_at_all_is_finite(kind):
    network = NETWORKS[kind]()
    x, noise, cond = inputs(network)
    null = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), cond["text"])
    params = perturbed(network)
    loss = lambda params: jnp.sum(network.apply(params, x, noise, {**cond, "text": null}) ** 2)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_parameters_do_not_depend_on_the_size():
    shapes = [small("cross", image_size=size, low_res_size=size // 4).shapes() for size in (16, 64)]
    assert shapes[0] == shapes[1]


def test_a_crop_and_the_whole_agree_inside():
    """Trained on crops, applied to 4 times the pixels: where neither border is in sight, a repeated crop gives what it gave.

    Group normalisation sees borders from everywhere, so that a small difference is left.
    """
    network = small("cross")
    params = perturbed(network)
    rng = np.random.default_rng(0)
    text = {"tokens": rng.standard_normal((1, 4, 5)).astype(np.float32), "mask": np.ones((1, 4), bool)}

    apply = jax.jit(network.apply)

    def out(x, low_res):
        cond = {"low_res": low_res, "aug_level": jnp.full(1, 30.0), "text": text}
        return np.asarray(apply(params, x, jnp.full(1, 300.0), cond))[0]

    x, low_res = rng.standard_normal((1, 64, 64, 2)), rng.standard_normal((1, 16, 16, 2))
    crop, inside = out(np.float32(x), np.float32(low_res)), slice(26, 38)
    whole = out(np.float32(np.tile(x, (1, 2, 2, 1))), np.float32(np.tile(low_res, (1, 2, 2, 1))))
    assert whole.shape == (128, 128, 2)
    for rows in (0, 64):
        for columns in (0, 64):
            tile = whole[rows : rows + 64, columns : columns + 64]
            assert np.abs(tile - crop)[inside, inside].max() < 0.05 * np.abs(crop).max()
    assert np.abs(whole[:64, :64] - crop)[:, -2:].max() > 0.1 * np.abs(crop).max()  # the border itself differs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strides": (2,)}, "strides has 1 entries, multipliers has 2"),
        ({"strides": (1, 3)}, "strides are 1 or 2"),
        ({"image_size": 15}, "not divisible by 2"),
        ({"num_heads": 3}, "num_heads"),
        ({"groups": 3}, "groups"),
    ],
)
def test_what_cannot_be_built(fields, message):
    with pytest.raises(ConfigError, match=message):
        small("self", **fields)


def test_text_unets_need_text():
    with pytest.raises(ConfigError, match="context_dim"):
        models.text_unet(**TINY)
    with pytest.raises(ConfigError, match="did you mean 'channels'"):
        from diffusion_jax.registry import build

        build("network", {"name": "text_unet", "image_size": 8, "context_dim": 4, "chanels": 8})
