"""What is measured on held-out data."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from diffusion_jax import data
from diffusion_jax.evaluation.held_out import accuracy_by_time
from diffusion_jax.spec import Spec
from diffusion_jax.systems import NoisyClassifier
from tests.tiny_systems import NO_PARAMS, PROCESS, FunctionNetwork


def test_the_accuracy_of_a_classifier_by_time():
    """Of one that always says 3."""
    pipeline = data.from_config({"source": "digits", "image_size": 8, "channels": 1, "batch_size": 8}, split="test")
    network = FunctionNetwork(lambda x, noise, cond: jnp.ones((len(x), 1)) * jnp.eye(10)[3], (8, 8, 1))
    system = NoisyClassifier(spec=Spec.image(8, 1), process=PROCESS, network=network, num_classes=10)
    found = accuracy_by_time(system, NO_PARAMS, pipeline, limit=100, batch_size=32)
    labels = next(pipeline.one_pass(100))["label"]
    assert found["accuracy_top1"] == pytest.approx((labels == 3).mean())
    assert found["accuracy_top1_t_0.25_to_0.5"] == found["accuracy_top1"] and len(found) == 10
