"""A vector, such as how images were augmented: fed in training, zeros in all else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Sampling
from tests.tiny_systems import NO_PARAMS, fed_in_training, loss_of, make_function

CONFIG = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 4}
VECTOR = {"vector": {}}


def nan_where_augmented(x, noise, cond):
    return jnp.where((cond["augment"] != 0).any(), jnp.nan, 0 * x)


def test_training_is_fed_how_images_were_augmented_and_all_else_zeros():
    system, pipeline = make_function(nan_where_augmented, conditioners=VECTOR), data.from_config({**CONFIG, "augment": 0.9})
    system.check(pipeline)
    batch = pipeline.batch(0)
    fed = lambda batch, train: fed_in_training(batch, train=train, conditioners=VECTOR)[2]["augment"]  # noqa: E731
    np.testing.assert_array_equal(fed(batch, True), batch["augment"])
    assert np.isnan(loss_of(system, NO_PARAMS, batch, jax.random.key(0))[0]) and np.any(batch["augment"])
    np.testing.assert_array_equal(fed(next(pipeline.one_pass(4)), False), np.zeros((4, 9)))
    samples = jax.jit(lambda key: system.sample(NO_PARAMS, key, {}, jnp.arange(3), Sampling(steps=2)))(jax.random.key(0))
    assert np.isfinite(samples).all()


def test_a_vector_of_another_name_and_length():
    batch = {"image": np.zeros((4, 8, 8, 1), np.uint8), "sizes": np.arange(8.0).reshape(4, 2)}
    vector = {"vector": {"key": "sizes", "dim": 2}}
    np.testing.assert_array_equal(fed_in_training(batch, conditioners=vector)[2]["sizes"], batch["sizes"])
    with pytest.raises(ConfigError, match="dim must be a whole number at least 1"):
        make_function(conditioners={"vector": {"dim": 0}})


def test_augmentation_and_the_vector_come_together():
    plain, augmented = (data.from_config({**CONFIG, "augment": augment}) for augment in (0.0, 0.1))
    without = make_function()
    without.check(plain)
    with pytest.raises(ConfigError, match="set data.augment to 0, or add the conditioner 'vector'"):
        without.check(augmented)
    with pytest.raises(ConfigError, match="set data.augment to a probability"):
        make_function(conditioners=VECTOR).check(plain)
