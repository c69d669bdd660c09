"""The objective of denoising: where the gradient of a learned uncertainty vanishes, and what the loss is there."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from tests.tiny_systems import FunctionNetwork, loss_of, make_batch, make_generation

KEY = jax.random.key(3)


@dataclasses.dataclass(frozen=True)
class Uncertain(FunctionNetwork):
    """Learns how uncertain it is, by the noise level."""

    def log_variance(self, params, noise):
        return params["u"] + params["slope"] * noise


def make_edm(network, **objective):
    """Of EDM's process and its objective, changed by fields."""
    objective = {"weighting": "edm", "times": {"name": "log_normal"}, **objective}
    process = {"schedule": "edm", "prediction": "edm"}
    return make_generation(labels=None, process=process, network=network, objective=objective)


def uncertain(function) -> Uncertain:
    return Uncertain(function, (8, 8, 1))


def test_the_uncertainty_learns_the_logarithm_of_the_loss():
    """EDM's weighting is 1 on the network's own error: the best constant u is the log of the plain loss, the loss 1 + u."""
    network, batch = uncertain(lambda x, noise, cond: 0.3 * x), make_batch(8, count=64)
    plain, _ = loss_of(make_edm(network), {"network": {}}, batch, KEY)
    system = make_edm(network, uncertainty=True)
    loss = lambda params: loss_of(system, {"network": params}, batch, KEY)  # noqa: E731
    params = {"u": jnp.log(plain), "slope": jnp.zeros(())}
    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    assert float(value) == pytest.approx(1 + np.log(float(plain)), rel=1e-5)
    assert float(gradient["u"]) == pytest.approx(0, abs=1e-5)
    assert float(aux["per_example"].mean()) == pytest.approx(float(plain), rel=1e-4)
    higher = jax.grad(lambda params: loss(params)[0])({**params, "u": params["u"] + np.log(2.0)})
    assert float(higher["u"]) == pytest.approx(0.5, abs=1e-5)  # 1 - exp(-ln 2)


def test_the_uncertainty_sees_the_networks_noise_level():
    """u = ln(sigma) / 4 averages, over ln(sigma) ~ N(-1.2, 1.2^2), to -0.3; an error of 0 leaves only it."""
    system, batch = make_edm(uncertain(lambda x, noise, cond: jnp.zeros_like(x)), uncertainty=True), make_batch(8, count=2048)
    params = lambda slope: {"network": {"u": jnp.float32(30), "slope": jnp.float32(slope)}}  # noqa: E731
    up = lambda slope: float(loss_of(system, params(slope), batch, jax.random.key(0))[0])  # noqa: E731
    assert up(1.0) - up(0.0) == pytest.approx(-0.3, abs=0.03)


def test_what_cannot_be_trained_with_uncertainty():
    with pytest.raises(ConfigError, match="such as 'edm2'"):
        make_edm(FunctionNetwork(lambda x, noise, cond: x, (8, 8, 1)), uncertainty=True)
    for fields, message in (
        ({"times": "importance"}, "unbiased times"),
        ({"weighting": "vlb"}, "'vlb' has none: use 'edm'"),
        ({"distance": "l1"}, "a squared error: use the distance 'l2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_edm(uncertain(lambda x, noise, cond: x), uncertainty=True, **fields)
