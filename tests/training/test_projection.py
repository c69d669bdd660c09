"""Weights held to a norm in training, and the learning rate that goes with it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.training import ema, optimizer
from diffusion_jax.training.state import init_state
from diffusion_jax.training.step import make_step, zero_metrics


@dataclasses.dataclass(frozen=True)
class Sphere:
    """A point on the unit sphere that seeks a target; `finite` False makes every loss infinite."""

    finite: bool = True

    def init(self, key):
        return {"w": jnp.array([1.0, 0.0])}

    def init_state(self):
        return {}

    def project(self, params):
        return {"w": params["w"] / jnp.linalg.norm(params["w"])}

    def loss(self, params, state, batch, key, *, train=True):
        loss = -params["w"] @ jnp.array([3.0, 4.0]) + (0.0 if self.finite else jnp.inf)
        return loss, (state, {"per_example": jnp.zeros(1), "log_snr": jnp.zeros(1)})


def steps(system, count):
    sgd, averages = optax.sgd(0.1), (ema.Constant(0.5, warmup=False),)
    step = jax.jit(make_step(system, sgd, averages, 0))
    state, sums = init_state(system, sgd, averages, 0), zero_metrics()
    states = [state]
    for _ in range(count):
        state, sums = step(state, sums, {"image": jnp.zeros((1, 1))})
        states.append(state)
    return states


def test_parameters_are_projected_before_they_are_averaged():
    first, one, two, *_, last = steps(Sphere(), 40)
    expected = np.array([1.3, 0.4]) / np.hypot(1.3, 0.4)
    np.testing.assert_allclose(one.params["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(one.ema["constant_0.5"]["w"], (np.array([1, 0]) + expected) / 2, rtol=1e-5)
    assert float(jnp.linalg.norm(two.params["w"])) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(last.params["w"], [0.6, 0.8], atol=1e-4)


def test_a_skipped_step_projects_nothing():
    first, one = steps(Sphere(finite=False), 1)
    np.testing.assert_array_equal(one.params["w"], first.params["w"])
    assert int(one.skipped) == 1


def test_inverse_square_root_decay_counts_from_the_first_step():
    """lr / sqrt(max(n / decay, 1)) with a linear ramp: 0.01 until step 70,000, half of it at 280,000."""
    _, rate = optimizer.from_config(
        {"name": "adam", "learning_rate": 0.01, "warmup_steps": 4882, "decay": "inverse_sqrt", "decay_steps": 70_000}, 10**6
    )
    assert float(rate(2440)) == pytest.approx(0.005, rel=1e-3)
    for step, expected in [(4882, 0.01), (70_000, 0.01), (140_000, 0.01 / 2**0.5), (280_000, 0.005)]:
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5), step
