"""Learned uncertainty: where its gradient vanishes, and what the loss is there."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Generation, UncertainGeneration
from tests.tiny_systems import NETWORK, FunctionNetwork, make_batch

PROCESS = {"schedule": "edm", "prediction": "edm"}
FIELDS = {"image_size": 8, "channels": 1, "process": PROCESS, "weighting": "edm", "times": {"name": "log_normal"}}


@dataclasses.dataclass(frozen=True)
class Uncertain(FunctionNetwork):
    def log_variance(self, params, noise):
        return params["u"] + params["slope"] * noise


def test_the_uncertainty_learns_the_logarithm_of_the_loss():
    """EDM's weighting is 1 on the network's own error: the best constant u is the log of the plain loss, the loss 1 + u."""
    network = Uncertain(lambda x, noise, cond: 0.3 * x, (8, 8, 1))
    batch, key = make_batch(8, count=64), jax.random.key(3)
    plain, _ = Generation(**FIELDS, network=network).loss({}, {}, batch, key)
    system = UncertainGeneration(**FIELDS, network=network)
    params = {"u": jnp.log(plain), "slope": jnp.zeros(())}
    (loss, (_, seen)), gradient = jax.value_and_grad(system.loss, has_aux=True)(params, {}, batch, key)
    assert float(loss) == pytest.approx(1 + np.log(float(plain)), rel=1e-5)
    assert float(gradient["u"]) == pytest.approx(0, abs=1e-5)
    assert float(seen["per_example"].mean()) == pytest.approx(float(plain), rel=1e-4)
    higher = jax.grad(lambda p: system.loss(p, {}, batch, key)[0])({**params, "u": params["u"] + np.log(2.0)})
    assert float(higher["u"]) == pytest.approx(0.5, abs=1e-5)  # 1 - exp(-ln 2)


def test_the_uncertainty_sees_the_networks_noise_level():
    """u = ln(sigma) / 4 averages, over ln(sigma) ~ N(-1.2, 1.2^2), to -0.3; an error of 0 leaves only it."""
    exact = Uncertain(lambda x, noise, cond: jnp.zeros_like(x), (8, 8, 1))
    system = UncertainGeneration(**FIELDS, network=exact)
    batch = make_batch(8, count=2048)
    up = lambda slope: system.loss({"u": jnp.float32(30), "slope": jnp.float32(slope)}, {}, batch, jax.random.key(0))[0]  # noqa: E731
    assert float(up(1.0) - up(0.0)) == pytest.approx(-0.3, abs=0.03)


def test_what_it_cannot_train():
    with pytest.raises(ConfigError, match="such as 'edm2'"):
        UncertainGeneration(**FIELDS, network=NETWORK)
    network = Uncertain(lambda x, noise, cond: x, (8, 8, 1))
    with pytest.raises(ConfigError, match="unbiased times"):
        UncertainGeneration(**FIELDS | {"times": "importance"}, network=network)
    with pytest.raises(ConfigError, match="'vlb' has none: use 'edm'"):
        UncertainGeneration(**FIELDS | {"weighting": "vlb"}, network=network)
    with pytest.raises(ConfigError, match="a squared error: use the distance 'l2'"):
        UncertainGeneration(**FIELDS | {"distance": "l1"}, network=network)
