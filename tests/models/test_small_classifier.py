"""The small classifier: its shapes at every size, and that it learns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax import models


@pytest.mark.parametrize("size", [8, 15, 28, 32, 64, 256])
def test_any_size_gives_logits_and_features_at_a_small_cost(size):
    network = models.small_classifier(size, 3, 10, features=24)
    params = jax.eval_shape(network.init, jax.random.key(0))
    logits, features = jax.eval_shape(network.apply, params, jnp.zeros((2, size, size, 3)))
    assert logits.shape == (2, 10) and features.shape == (2, 24)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 350_000


@pytest.mark.slow
def test_it_learns_and_does_not_drop_units_when_judging():
    """Stripes across against stripes along, whatever their phase."""
    phase, across = np.arange(64) % 8, np.arange(64) // 8 % 2
    stripes = np.sin(np.arange(8)[None] * 1.6 + phase[:, None])[:, :, None] * np.ones((1, 1, 8))
    x = jnp.asarray(np.where(across[:, None, None], stripes, stripes.swapaxes(1, 2))[..., None], jnp.float32)
    network, optimizer = models.small_classifier(8, 1, 2), optax.adam(3e-3)
    params = network.init(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            logits, _ = network.apply(params, x, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, across).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for i in range(20):
        params, state = step(params, state, jax.random.key(i))
    judge = jax.jit(network.apply)
    assert (judge(params, x)[0].argmax(-1) == across).mean() > 0.95
    np.testing.assert_array_equal(judge(params, x)[1], judge(params, x)[1])
