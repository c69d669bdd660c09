"""Generation with a network that is told how its images were augmented."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Generation, Sampling
from tests.tiny_systems import PROCESS, FunctionNetwork, make_super_resolution

CONFIG = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 4}


def system(told, augment=True):
    """A system whose network notes what it is told, and outputs NaN where that is anything."""

    def function(x, noise, cond):
        told.append(cond.get("augment"))
        return jnp.where((cond["augment"] != 0).any(), jnp.nan, 0 * x) if "augment" in cond else 0 * x

    spec = {"augment": jax.ShapeDtypeStruct((9,), jnp.float32)} if augment else {}
    network = FunctionNetwork(function, (8, 8, 1), spec)
    return Generation(image_size=8, channels=1, process=PROCESS, network=network, augment=augment)


def test_training_tells_what_was_done_and_all_else_tells_nothing():
    told = []
    built = system(told)
    pipeline = data.from_config({**CONFIG, "augment": 0.9})
    built.check(pipeline)
    batch = pipeline.batch(0)
    loss, _ = built.loss({}, {}, batch, jax.random.key(0))
    np.testing.assert_array_equal(told[-1], batch["augment"])
    assert np.isnan(loss) and np.any(batch["augment"])
    built.loss({}, {}, next(pipeline.one_pass(4)), jax.random.key(0), train=False)
    np.testing.assert_array_equal(told[-1], np.zeros((4, 9)))
    samples = jax.jit(lambda key: built.sample({}, key, {}, jnp.arange(3), Sampling(steps=2)))(jax.random.key(0))
    assert np.isfinite(samples).all()


def test_augmentation_and_labels_come_together():
    plain, augmented = (data.from_config({**CONFIG, "augment": augment}) for augment in (0.0, 0.1))
    with pytest.raises(ConfigError, match="set system.augment to True"):
        system([], augment=False).check(augmented)
    with pytest.raises(ConfigError, match="set data.augment to a probability"):
        system([]).check(plain)
    untold = make_super_resolution(image_size=8, low_res_size=4, num_classes=0)
    untold.check(plain)
    with pytest.raises(ConfigError, match="set data.augment to 0: 'super_resolution' has no such field"):
        untold.check(augmented)
    with pytest.raises(ConfigError, match="conditions its network on .'augment'."):
        Generation(image_size=8, channels=1, process=PROCESS, network={"name": "unet", "channels": 32}, augment=True)
