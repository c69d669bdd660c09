"""Systems of bits: the codec, the bound as an objective, samples, and what does not fit together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.systems import Binary, Sampling
from tests.tiny_systems import FunctionNetwork, loss_of, make_batch, make_generation, start

ABSORBING = {"name": "categorical", "num_values": 2, "noise": "absorbing"}
PROCESSES = pytest.mark.parametrize("process", [{"name": "binomial"}, ABSORBING], ids=["binomial", "absorbing"])


def make_bits(process, **fields):
    """An unconditional system of 8x8 bits."""
    return make_generation(**{"labels": None, "process": process, "codec": "binary", "objective": "bound", **fields})


def test_bytes_become_bits_and_return():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    bits = Binary().encode({}, {"image": image}, jax.random.key(0))
    assert bits.dtype == jnp.int32 and bits.ravel().tolist() == [0] * 128 + [1] * 128
    assert np.unique(Binary().decode({}, bits)).tolist() == [0, 255]
    np.testing.assert_array_equal(Binary().encode({}, {"image": Binary().decode({}, bits)}, jax.random.key(0)), bits)
    assert Binary().decode({}, jnp.array([0, 1, 2]), quantize=False).tolist() == [-1, 1, 0]
    assert Binary().decode({}, jnp.array([0, 1, 2])).tolist() == [0, 255, 128]


def test_bits_by_chance():
    """One with the probability of the pixel's brightness, by the key."""
    image = np.repeat(np.array([0, 51, 255], np.uint8), 10_000).reshape(3, 100, 100, 1)
    one, two = (Binary(threshold=None).encode({}, {"image": image}, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_allclose(one.mean((1, 2, 3)), [0, 0.2, 1], atol=0.02)
    assert (one != two).any()


@PROCESSES
def test_knowing_nothing_costs_one_bit_for_each(process):
    """With logits of 0, as of a fresh network, the bound of fair coins is tight, whatever the data."""
    network = FunctionNetwork(lambda x, level, cond: jnp.zeros((*x.shape[:-1], 2)), (8, 8, 1))
    batch, values = make_batch(8, 512), {}
    for weight in (0.0, 1.0):
        system = make_bits(process, network=network, objective={"name": "bound", "steps": 10, "aux_weight": weight})
        value, aux = jax.jit(lambda key, system=system: loss_of(system, {"network": {}}, batch, key))(jax.random.key(0))
        assert abs(float(aux["per_example"].mean()) - 1) < 4 * float(aux["per_example"].std()) / 512**0.5 < 0.2
        assert aux["log_snr"].shape == (512,)
        values[weight] = float(value)
    lost = np.arange(1, 11) / 10
    right = 1 - lost / 2
    entropy = -right * np.log2(right) - (1 - right) * np.log2(1 - right)  # of x0, given a bit that may have been tossed anew
    np.testing.assert_allclose(values[1.0] - values[0.0], (lost if process is ABSORBING else entropy).mean(), rtol=0.05)


@PROCESSES
def test_samples_are_bits_by_index(process):
    network = FunctionNetwork(lambda x, level, cond: jnp.concatenate([x, -x], -1), (8, 8, 1))
    system, sampling = make_bits(process, network=network), Sampling(solver="categorical", steps=4)
    draw = jax.jit(lambda indices: system.sample({"network": {}}, jax.random.key(0), {}, indices, sampling))
    whole = draw(jnp.arange(4))
    assert whole.dtype == jnp.int32 and whole.shape == (4, 8, 8, 1) and set(np.unique(whole)) == {0, 1}
    np.testing.assert_array_equal(draw(jnp.array([2, 0, 1, 3])), whole[jnp.array([2, 0, 1, 3])])
    early = system.sample({"network": {}}, jax.random.key(0), {}, jnp.arange(4), sampling, end=0.5)
    assert (early == 2).any() == (process is ABSORBING)


@pytest.mark.slow
def test_a_network_has_logits_of_each_bit():
    system = make_bits(ABSORBING)
    batch = make_batch(8, 2)
    (_, aux), gradient = jax.jit(
        jax.value_and_grad(lambda params: loss_of(system, params, batch, jax.random.key(0)), has_aux=True)
    )(start(system))
    assert system.network.module.out_channels == 2 and aux["per_example"].shape == (2,)
    assert np.abs(gradient["network"]["head"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "denoising"}, "objective 'denoising' needs a Gaussian process, but this one is Categorical"),
        ({"objective": "denoising", "process": {"schedule": "cosine"}}, "the codec Binary makes categories"),
        ({"process": {"schedule": "cosine"}}, "for Gaussian noise use 'denoising'"),
        ({"codec": "pixels"}, "2 categories, which the codec Pixels does not encode"),
        ({"process": {"name": "categorical", "num_values": 3}}, "3 categories, which the codec Binary"),
        ({"more": {"image": {}}}, "conditioner 'image' needs a Gaussian"),
        ({"objective": {"name": "bound", "steps": 0}}, "steps must be a whole number at least 1"),
        ({"codec": {"name": "binary", "threshold": 2.0}}, r"threshold must be a number in \[0, 1\]"),
    ],
)
def test_parts_that_do_not_fit(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_bits(**{"process": {"name": "binomial"}, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "ddim"}, "this solver needs a Gaussian process"),
        ({"guidance": 2.0}, "sampling.guidance needs a Gaussian process, but this one is Categorical: use guidance 1"),
        ({"schedule": "linear"}, "sampling.schedule needs a Gaussian"),
        ({"classifier": "runs/a"}, "sampling.classifier needs a Gaussian"),
        ({"grid": "karras"}, "grid 'karras' needs a Gaussian process"),
    ],
)
def test_bits_are_not_sampled_so(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_bits({"name": "binomial"}).check_sampling(Sampling(**{"solver": "categorical", "steps": 4, **fields}))
