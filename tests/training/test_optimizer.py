"""Optimisers by name, learning rates by step, clipping, decay."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.training import optimizer


def rates(**config):
    _, rate = optimizer.from_config({"name": "sgd", **config}, 100)
    return lambda step: float(rate(step))


def test_warm_up_reaches_the_rate():
    rate = rates(learning_rate=0.8, warmup_steps=4)
    np.testing.assert_allclose([rate(step) for step in range(6)], [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)
    assert rates(learning_rate=0.8, warmup_steps=1)(0) == pytest.approx(0.8) == rates(learning_rate=0.8)(0)


def test_decays():
    cosine = rates(learning_rate=1.0, warmup_steps=20, decay="cosine", final_ratio=0.1)
    assert cosine(20) == pytest.approx(1.0) and cosine(100) == pytest.approx(0.1)
    assert cosine(40) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    linear = rates(learning_rate=1.0, decay="linear", decay_steps=50)
    assert linear(25) == pytest.approx(0.5) and linear(50) == linear(99) == pytest.approx(0)
    rsqrt = rates(learning_rate=1.0, warmup_steps=10, decay="rsqrt")
    assert rsqrt(10) == pytest.approx(1.0) and rsqrt(40) == pytest.approx(0.5)


def test_inverse_square_root_decay_counts_from_the_first_step():
    """lr / sqrt(max(n / decay, 1)) with a linear ramp: 0.01 until step 70,000, half of it at 280,000."""
    rate = rates(learning_rate=0.01, warmup_steps=4882, decay="inverse_sqrt", decay_steps=70_000)
    assert rate(2440) == pytest.approx(0.005, rel=1e-3)
    for step, expected in [(4882, 0.01), (70_000, 0.01), (140_000, 0.01 / 2**0.5), (280_000, 0.005)]:
        assert rate(step) == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize("name", ["adamw", "adam", "adafactor", "sgd"])
def test_each_descends(name):
    transform, _ = optimizer.from_config({"name": name, "learning_rate": 0.05, "clip_norm": 1.0}, 100)
    params = {"kernel": jnp.full((4, 4), 2.0)}
    state = transform.init(params)
    update = jax.jit(lambda params, state: transform.update(jax.tree.map(lambda x: 2 * x, params), state, params))
    for _ in range(60):
        updates, state = update(params, state)
        params = jax.tree.map(np.add, params, updates)
    assert float(jnp.abs(params["kernel"]).max()) < 1.5


def test_clipping_by_the_global_norm():
    transform, _ = optimizer.from_config({"name": "sgd", "learning_rate": 1.0, "clip_norm": 1.0}, 100)
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = transform.update(gradient, transform.init(gradient), gradient)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)


def test_biases_may_be_spared_from_decay():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for what, bias in (("all", -0.01), ("matrices", 0.0)):
        fields = {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.1, "decay_on": what}
        transform, _ = optimizer.from_config(fields, 100)
        updates, _ = transform.update(zeros, transform.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -0.01, rtol=1e-5)
        np.testing.assert_allclose(updates["bias"], bias, atol=1e-8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adafctor"}, "did you mean 'adafactor'"),
        ({"name": "adamw", "lerning_rate": 1}, "did you mean 'learning_rate'"),
        ({"name": "sgd", "b1": 0.5}, "'sgd' has no field 'b1'"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate": -1.0}, "learning_rate must be a number at least 0, got -1.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a number at least 0, got nan"),
        ({"learning_rate": "fast"}, "learning_rate must be a number at least 0, got 'fast'"),
        ({"decay_on": "matrix"}, "decay_on must be one of 'all', 'matrices', got 'matrix'; did you mean 'matrices'"),
        ({"clip_norm": -1}, "optimizer 'adamw': clip_norm must be a number at least 0, got -1"),
        ({"b1": 2}, r"optimizer 'adamw': b1 must be a number in \[0, 1\), got 2"),
        ({"eps": 0}, "eps must be a number above 0"),
        ({"warmup_steps": 2.5}, "warmup_steps must be a whole number at least 0, got 2.5"),
        ({"name": "sgd", "momentum": "high"}, "momentum must be a number in"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(ConfigError, match=message):
        optimizer.from_config({"name": "adamw", "learning_rate": 1e-3, **fields}, 10)


def test_an_optimiser_for_each_group():
    fields = {"name": "sgd", "learning_rate": 0.1}
    _, same = optimizer.by_group(fields, ["network", "critic"], 10)
    _, own = optimizer.by_group({"network": fields, "critic": {**fields, "learning_rate": 0.4}}, ["critic", "network"], 10)
    assert {group: float(rate(0)) for group, rate in same.items()} == pytest.approx({"network": 0.1, "critic": 0.1})
    assert {group: float(rate(0)) for group, rate in own.items()} == pytest.approx({"network": 0.1, "critic": 0.4})
    with pytest.raises(ConfigError, match="unknown 'critc'; did you mean 'critic'"):
        optimizer.by_group({"network": fields, "critc": fields}, ["network", "critic"], 10)
    with pytest.raises(ConfigError, match="the group 'critic' of the system's parameters has none"):
        optimizer.by_group({"network": fields}, ["network", "critic"], 10)
