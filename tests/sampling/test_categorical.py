"""Ancestral sampling of bits and categories against enumerated chains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.process.discrete import Categorical, binomial
from diffusion_jax.sampling import grids, sample, solvers
from tests.enumeration import MASKED_TOKENS, STEPS, WORLDS, World
from tests.oracles import QUICK


def run(world, count, denoiser=None, steps=STEPS, **kwargs):
    denoiser = denoiser or world.denoiser()
    draw = lambda key: sample(  # noqa: E731
        denoiser, solvers.categorical(), grids.uniform(steps), key, (count, world.elements), **kwargs
    )
    return jax.tree.map(np.asarray, jax.jit(draw, compiler_options=QUICK)(jax.random.key(0)))


def distance(world, x, exact):
    """Total variation between samples [N, elements] and a distribution over all states."""
    found = np.bincount(np.asarray(world.place(x)), minlength=len(exact)) / len(x)
    return 0.5 * np.abs(found - exact).sum()


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_samples_follow_the_enumerated_chain(world):
    """The distance shrinks as 1 / sqrt(N), to what N perfect draws have; and another chain is far from it."""
    x = run(world, 40_000)
    assert x.dtype == np.int32 and x.max() < world.values
    perfect = lambda count: 0.5 * np.sqrt(2 / np.pi * world.model * (1 - world.model) / count).sum()  # noqa: E731
    for count in (400, 4_000, 40_000):
        assert distance(world, x[:count], world.model) < 1.7 * perfect(count)
    other = World(world.noise, world.values, world.elements, seed=1).model
    assert distance(world, x, other) > 20 * perfect(40_000)


@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_the_exact_denoiser_draws_the_data(noise):
    """One element: its reverse steps are exact, however few they are."""
    data, process = np.array([0.6, 0.3, 0.1]), Categorical(3, noise)
    exact = Denoiser(lambda x, t: process.decode(jnp.broadcast_to(jnp.log(data), (*x.shape[:-1], 3)), x, t), process)
    for steps in (1, 3, 10):
        x = run(World(noise, 3, elements=1), 20_000, exact, steps)
        assert 0.5 * np.abs(np.bincount(x[:, 0], minlength=3) / len(x) - data).sum() < 0.01


def test_what_is_unmasked_stays():
    """Each element is unmasked once, on the steps that keep(t) says, and none is left masked."""
    _, path = run(MASKED_TOKENS, 20_000, trajectory=True)
    masked = path == 3
    assert masked[0].all() and not masked[-1].any()
    assert (masked[1:] <= masked[:-1]).all() and (path[1:] == path[:-1])[~masked[:-1]].all()
    np.testing.assert_allclose(masked.mean((1, 2)), [1, 0.75, 0.5, 0.25, 0], atol=0.02)


def test_a_sample_is_a_function_of_its_index():
    whole = run(MASKED_TOKENS, 16)
    np.testing.assert_array_equal(run(MASKED_TOKENS, 4, indices=jnp.array([9, 2, 15, 0])), whole[[9, 2, 15, 0]])


def test_solvers_say_which_processes_they_serve():
    bits = Denoiser(lambda x, t: x, binomial())
    with pytest.raises(ConfigError, match="Gaussian process, but this one is Categorical: use"):
        sample(bits, solvers.ddpm(), grids.uniform(2), jax.random.key(0), (1, 2))
    gaussian = Denoiser(lambda x, t: x, Process("cosine", "v"))
    with pytest.raises(ConfigError, match="not of Process: use a solver of Gaussian noise, such as 'ddpm'"):
        sample(gaussian, solvers.categorical(), grids.uniform(2), jax.random.key(0), (1, 2))
