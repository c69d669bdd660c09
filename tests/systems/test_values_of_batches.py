"""Values out of range where batches and requests enter: labels, floating images of 0 to 255, codecs without a range."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.evaluation import held_out
from diffusion_jax.systems import NoisyClassifier, Pixels, check_request, to_float
from tests.tiny_systems import NO_PARAMS, FunctionNetwork, loss_of, make_batch, make_generation

KEY = jax.random.key(0)


def spoilt(batch, kind):
    """A batch of which one value is out of range."""
    batch = {name: np.array(value) for name, value in batch.items()}
    if kind == "labels":
        batch["label"][-1] = 10
    elif kind == "negative labels":
        batch["label"][-1] = -1
    elif kind == "floats of 0 to 255":
        batch["image"] = batch["image"].astype(np.float32)
    elif kind == "16 bits":
        batch["image"] = batch["image"].astype(np.uint16) * 257
    else:
        batch["image"] = np.where(np.arange(batch["image"].size).reshape(batch["image"].shape) == 7, np.nan, 0.5)
    return batch


SPOILT = {
    "labels": "label 10 is out of range: the model has 10 classes",
    "negative labels": "label -1 is out of range",
    "floats of 0 to 255": r"floating images must lie in \[-1, 1\], got values from .* to 255",
    "16 bits": "images must be uint8, or floating in .*got uint16",
    "NaN": r"floating images must lie in \[-1, 1\], got values from nan",
}


class Fixed:
    """A pipeline of one batch."""

    augment = 0.0
    degradation = None
    num_classes = 10

    def __init__(self, batch, spec):
        self.batch, self.spec = batch, spec

    def __len__(self):
        return len(self.batch["image"])

    def one_pass(self, batch_size, limit=None):
        yield {name: value[:batch_size] for name, value in self.batch.items()}


def diffusion():
    return make_generation(labels={"num_classes": 10, "drop": 0.1})


def classifier():
    network = FunctionNetwork(lambda x, noise, cond: x.reshape(len(x), -1)[:, :10], (8, 8, 1))
    return NoisyClassifier(spec=diffusion().spec, process={"schedule": "cosine"}, network=network, num_classes=10)


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("make", [diffusion, classifier])
def test_values_out_of_range_are_named(make, kind):
    """Before training, of the pipeline's first batch; and by the losses themselves, where a person calls them."""
    system, batch = make(), make_batch(8, count=4)
    batch["image"][0, 0, 0] = 255
    system.check(Fixed(batch, system.spec))
    bad = spoilt(batch, kind)
    with pytest.raises((ConfigError, DataError), match=SPOILT[kind]):
        system.check(Fixed(bad, system.spec))
    with pytest.raises((ConfigError, DataError), match=SPOILT[kind]):
        loss_of(system, NO_PARAMS, bad, KEY)


def test_requests_of_images_are_checked():
    system = make_generation(labels=None, conditioners={"low_res": {"size": 4}})
    check_request(system, {"low_res": np.zeros((2, 4, 4, 1), np.uint8)})
    with pytest.raises(DataError, match=SPOILT["floats of 0 to 255"]):
        check_request(system, {"low_res": np.full((2, 4, 4, 1), 255.0)})


def test_traced_images_pass_unseen():
    assert jax.jit(to_float)(jnp.full(3, 200.0)).tolist() == [200.0] * 3
    with pytest.raises(DataError, match="got int32"):  # a kind is known of traced ones too
        jax.jit(to_float)(jnp.zeros(3, jnp.int32))


@dataclasses.dataclass(frozen=True)
class Unbounded(Pixels):
    """Encoded data without bounds, as those of an autoencoder are."""

    range = None


def test_bounds_need_a_codec_with_a_range():
    """As a loss before anything is built, and as a measure before anything is computed; other losses need none."""
    network = FunctionNetwork(lambda x, noise, cond: jnp.concatenate([x, x], -1), (8, 8, 1))
    fields = {"labels": None, "network": network, "codec": Unbounded()}
    learned = {"schedule": "cosine", "variance": "learned_range"}
    for objective in ({"vlb_weight": 0.001}, {"weighting": "vlb"}):
        with pytest.raises(ConfigError, match="as a loss, counts 256 levels.*codec Unbounded have no range"):
            make_generation(**fields, process=learned, objective=objective)
    system = make_generation(**fields, process={"schedule": "cosine"})
    for measure in (held_out.bound_terms, held_out.ode_bits_per_dim):
        with pytest.raises(ConfigError, match="bits per dimension counts 256 levels.*codec Unbounded have no range"):
            measure(system, NO_PARAMS, None)
