"""The U-Net: conditioning, equivalences and numerics."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.helpers import inputs, perturbed, run, tiny


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
    network = tiny(**fields)
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


def _ramp(value):
    """A factor that no normalisation undoes."""
    return np.linspace(0, 2, value.size, dtype=np.float32).reshape(value.shape)


def test_a_fresh_network_outputs_zero_whatever_its_input():
    network = tiny(num_classes=3)
    x, noise, cond = inputs(network)
    params = jax.jit(network.init)(jax.random.key(0))
    assert {type(node) for node in (params, *params.values())} == {dict}
    np.testing.assert_array_equal(run(network, params, x, noise, cond), 0)


def test_the_null_class_is_one_more_row():
    """A label beyond the classes has an embedding of its own, and rows do not mix."""
    network, without = tiny(num_classes=3, null_class=True), tiny(num_classes=3)
    table = lambda n: n.shapes()["label_embedding"]["embedding"].shape  # noqa: E731
    assert table(network) == (4, 32) and table(without) == (3, 32)
    params = perturbed(network)
    x, noise, _ = inputs(network)
    apply = jax.jit(network.apply)
    null = apply(params, x, noise, {"label": np.array([3, 3])})
    mixed = apply(params, x, noise, {"label": np.array([3, 0])})
    np.testing.assert_allclose(null[0], mixed[0], atol=1e-6)
    assert np.abs(null[1] - mixed[1]).max() > 1e-3


def test_masked_tokens_do_not_count():
    network = tiny(context_dim=6, context_length=5)
    params = perturbed(network)
    x, noise, cond = inputs(network)
    apply = jax.jit(network.apply)
    tokens, mask = cond["text"]["tokens"], np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
    out = apply(params, x, noise, {"text": {"tokens": tokens, "mask": mask}})
    unseen = {"text": {"tokens": np.where(mask[..., None], tokens, 100 * _ramp(tokens)), "mask": mask}}
    np.testing.assert_array_equal(out, apply(params, x, noise, unseen))
    shorter = {"text": {"tokens": tokens[:, :3], "mask": mask[:, :3]}}
    np.testing.assert_allclose(out, apply(params, x, noise, shorter), atol=1e-5)
    none = apply(params, x, noise, {"text": {"tokens": tokens, "mask": np.zeros_like(mask)}})
    assert np.isfinite(none).all() and np.abs(none - out).max() > 1e-4


def test_low_res_is_resized_and_concatenated():
    """A network of an extra image of full size, fed the resized low-res, is the same function, from any size of it."""
    one = dict(multipliers=(1,))
    low, full = tiny(low_res_channels=2, low_res_size=4, low_res_method="bicubic", **one), tiny(image_channels=2, **one)
    params = perturbed(low)
    x, noise, cond = inputs(low)
    apply = jax.jit(full.apply)
    for small in (cond["low_res"], cond["low_res"][:, :2, :3]):
        expected = apply(params, x, noise, {"image": jax.image.resize(small, (2, 8, 8, 2), "bicubic")})
        np.testing.assert_allclose(run(low, params, x, noise, {"low_res": small}), expected, atol=1e-5)


@pytest.mark.slow
def test_remat_changes_nothing_but_memory():
    """The tree, the initial values, the gradients, and the units dropped are those of the plain network."""
    fields = dict(multipliers=(1,), attention_resolutions=(4,), image_size=4, dropout=0.5)
    plain, remat = tiny(**fields), tiny(**fields, remat=True)
    assert jax.tree.structure(plain.shapes()) == jax.tree.structure(remat.shapes())
    params = perturbed(plain)
    x, noise, cond = inputs(plain)
    rngs = {"dropout": jax.random.key(5)}

    def gradient(network):
        loss = lambda p: (network.apply(p, x, noise, cond, train=True, rngs=rngs) ** 2).mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    (loss, expected), (same, found) = gradient(plain), gradient(remat)
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-4, atol=1e-4), expected, found)


def test_bfloat16_is_close_and_parameters_stay_float32():
    single, half = tiny(multipliers=(1,)), tiny(multipliers=(1,), dtype="bfloat16")
    params = perturbed(single)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.shapes())} == {jnp.dtype("float32")}
    exact, rounded = run(single, params, *inputs(single)), run(half, params, *inputs(single))
    assert rounded.dtype == jnp.float32 and np.abs(exact - rounded).max() > 0
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_dropout_needs_a_key_and_acts_in_training_only():
    network = tiny(dropout=0.5, multipliers=(1,))
    params = perturbed(network)
    x, noise, cond = inputs(network)
    train = jax.jit(lambda key: network.apply(params, x, noise, cond, train=True, rngs={"dropout": key}))
    first = train(jax.random.key(0))
    np.testing.assert_array_equal(first, train(jax.random.key(0)))
    assert np.abs(first - train(jax.random.key(1))).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(lambda: network.apply(params, x, noise, cond, train=True))
    np.testing.assert_array_equal(run(network, params, x, noise), run(tiny(multipliers=(1,)), params, x, noise, train=True))


def test_other_sizes_run_through_the_same_parameters():
    network = tiny()
    out = jax.eval_shape(network.apply, network.shapes(), jnp.zeros((1, 16, 12, 2)), jnp.zeros(1))
    assert out.shape == (1, 16, 12, 2)
