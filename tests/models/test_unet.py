"""The U-Net: conditioning, equivalences, numerics, and the errors of its construction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError

TINY = dict(
    image_size=8, in_channels=2, channels=8, groups=4, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)


def perturbed(network, seed=0):
    """Parameters away from the initial zeros, so that every path counts."""
    params = network.init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)])


def _ramp(v):
    """Unequal factors: normalisations see through equal ones."""
    return jnp.linspace(0.5, 2.0, v.size).reshape(v.shape)


def inputs(network, batch=2):
    x, noise, cond = network.example_inputs(batch)
    keys = iter(jax.random.split(jax.random.key(9), 50))
    fill = lambda s: (  # noqa: E731
        jax.random.normal(next(keys), s.shape) if s.dtype == jnp.float32 else jnp.ones(s.shape, s.dtype)
    )
    return fill(x), jnp.array([10.0, 700.0])[:batch], jax.tree.map(fill, cond)


def test_a_fresh_network_outputs_zero():
    network = models.unet(**TINY)
    x, noise, cond = inputs(network)
    np.testing.assert_array_equal(jax.jit(network.apply)(network.init(jax.random.key(0)), x, noise, cond), 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 3},
        {"num_classes": 3, "null_class": True, "conditioning": "additive", "embedding": "ddpm", "down_padding": "same"},
        {"low_res_channels": 2, "low_res_size": 4, "aug_level": True},
        {"image_channels": 1, "mask": True, "resample": "resblock"},
        {"context_dim": 6, "context_length": 5, "pooled_dim": 7, "head_channels": 4},
        {"num_res_blocks": (1, 2), "skip_scale": 0.7071, "num_heads": 2},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_every_conditioning_reaches_the_output(fields):
    """Shapes, finiteness, and each input has an influence."""
    network = models.unet(**(TINY | fields))
    params = perturbed(network)
    x, noise, cond = inputs(network)
    apply = jax.jit(network.apply)
    out = apply(params, x, noise, cond)
    assert out.shape == (2, 8, 8, 2) and out.dtype == jnp.float32 and np.isfinite(out).all()
    assert np.abs(out - apply(params, x, noise + 50, cond)).max() > 1e-4
    for path, leaf in jax.tree_util.tree_leaves_with_path(cond):
        if leaf.dtype == jnp.bool_:
            continue
        other = jax.tree_util.tree_map_with_path(
            lambda p, v, path=path: v if p != path else (v - 1 if v.dtype == jnp.int32 else v * _ramp(v)), cond
        )
        assert np.abs(out - apply(params, x, noise, other)).max() > 1e-5, path


def test_masked_tokens_do_not_count():
    network = models.unet(**(TINY | {"context_dim": 6, "context_length": 5}))
    params = perturbed(network)
    x, noise, cond = inputs(network)
    cond["text"]["mask"] = jnp.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
    out = network.apply(params, x, noise, cond)
    tokens = cond["text"]["tokens"]
    unseen = {"text": {**cond["text"], "tokens": jnp.where(cond["text"]["mask"][..., None], tokens, 100.0)}}
    np.testing.assert_array_equal(out, network.apply(params, x, noise, unseen))
    shorter = {"text": {"tokens": tokens[:, :3], "mask": cond["text"]["mask"][:, :3]}}
    np.testing.assert_allclose(out, network.apply(params, x, noise, shorter), atol=1e-5)


def test_low_res_is_resized_and_concatenated():
    """A network of an extra image of full size, fed the resized low-res, is the same function."""
    low = models.unet(**(TINY | {"low_res_channels": 2, "low_res_size": 4}))
    full = models.unet(**(TINY | {"image_channels": 2}))
    params = perturbed(low)
    x, noise, cond = inputs(low)
    resized = jax.image.resize(cond["low_res"], (2, 8, 8, 2), "bilinear")
    np.testing.assert_array_equal(low.apply(params, x, noise, cond), full.apply(params, x, noise, {"image": resized}))


def test_remat_changes_nothing_but_memory():
    plain, remat = models.unet(**TINY), models.unet(**(TINY | {"remat": True}))
    params = perturbed(plain)
    assert jax.tree.structure(plain.shapes()) == jax.tree.structure(remat.shapes())
    x, noise, cond = inputs(plain)
    gradients = [
        jax.jit(jax.grad(lambda p, n=network: (n.apply(p, x, noise, cond) ** 2).mean()))(params)
        for network in (plain, remat)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), *gradients)


def test_bfloat16_is_close_and_parameters_stay_float32():
    single, half = models.unet(**TINY), models.unet(**(TINY | {"dtype": "bfloat16"}))
    params = perturbed(single)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.shapes())} == {jnp.dtype("float32")}
    x, noise, cond = inputs(single)
    exact, rounded = single.apply(params, x, noise, cond), half.apply(params, x, noise, cond)
    assert rounded.dtype == jnp.float32
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_dropout_needs_a_key_and_acts_in_training_only():
    network = models.unet(**(TINY | {"dropout": 0.5}))
    params = perturbed(network)
    x, noise, cond = inputs(network)
    draw = lambda seed: network.apply(params, x, noise, cond, train=True, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    assert np.abs(draw(0) - draw(1)).max() > 1e-3
    np.testing.assert_array_equal(draw(0), draw(0))
    np.testing.assert_array_equal(network.apply(params, x, noise, cond), network.apply(params, x, noise, cond))


def test_other_sizes_run_through_the_same_parameters():
    network = models.unet(**TINY)
    out = network.apply(network.init(jax.random.key(0)), jnp.zeros((1, 16, 12, 2)), jnp.zeros(1))
    assert out.shape == (1, 16, 12, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 9}, "not divisible by 2.*use 8 or 10"),
        ({"groups": 3}, "do not divide into 3 groups; groups=2 does"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"head_channels": 5}, "head_channels=5"),
        ({"num_res_blocks": (1, 2, 3)}, "num_res_blocks has 3 entries"),
    ],
)
def test_sizes_that_do_not_divide(fields, message):
    with pytest.raises(ConfigError, match=message):
        models.unet(**(TINY | fields))


def test_wrong_conditioning_is_named():
    network = models.unet(**(TINY | {"num_classes": 3}))
    params = network.init(jax.random.key(0))
    x, noise, cond = inputs(network)
    with pytest.raises(ConfigError, match=r"missing \['label'\], not known \['labels'\]"):
        network.apply(params, x, noise, {"labels": cond["label"]})
    with pytest.raises(ConfigError, match="must have the shape"):
        network.apply(params, x, noise, {"label": cond["label"][:1]})
    with pytest.raises(ConfigError, match=r"images \[B, H, W, 2\]"):
        network.apply(params, x[..., :1], noise, cond)
