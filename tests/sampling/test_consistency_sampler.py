"""Sampling of consistency models: one jump from noise to data, or several with a return to less noise between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.sampling import sample
from diffusion_jax.sampling.grids import levels
from diffusion_jax.sampling.solvers.few_step import consistency as solver


def test_each_step_returns_to_the_next_level():
    """f = 0.5 always: after a step to level 3 the samples have mean 0.5 and variance 3^2 - 0.002^2; the end is 0.5."""
    process = Process("edm", {"name": "consistency"}, noise_input="log_sigma")
    value = process.bind(lambda params, x, noise, cond: 0 * x, {})
    half = value.replace(lambda x, t: value(x, t)._replace(x0=jnp.full_like(x, 0.5)))
    final, visited = sample(half, solver(), levels((80.0, 3.0)), jax.random.key(0), (4000, 4), trajectory=True)
    assert (final == 0.5).all()
    np.testing.assert_allclose(visited[0].std(), 80.0, rtol=0.02)
    np.testing.assert_allclose([visited[1].mean(), visited[1].var()], [0.5, 9.0], atol=0.25)
    coarse = sample(half, solver(sigma_min=2.0), levels((80.0, 3.0)), jax.random.key(0), (4000, 4), trajectory=True)[1]
    np.testing.assert_allclose(coarse[1].var(), 9.0 - 4.0, rtol=0.05)


def test_the_exact_function_samples_gaussian_data_in_one_step_and_in_three():
    process, spread = Process("edm", {"name": "consistency"}), 0.3
    given = process.bind(lambda params, x, noise, cond: 0 * x, {})

    def exact(x, t):
        level = jnp.exp(-0.5 * process.log_snr(t))[:, None]
        return given(x, t)._replace(x0=jnp.sqrt((0.002**2 + spread**2) / (level**2 + spread**2)) * x)

    for steps in ((80.0,), (80.0, 5.0, 0.5)):
        drawn = sample(given.replace(exact), solver(), levels(steps), jax.random.key(1), (20_000, 1))
        assert abs(float(drawn.std()) - spread) < 0.01


def test_grids_of_levels_and_their_errors():
    process = Process("edm", {"name": "consistency"})
    times = levels((80.0, 0.661))(process)
    np.testing.assert_allclose(80 * times**7, [80.0, 0.661, 0.0], rtol=1e-6)
    np.testing.assert_allclose(levels((5.0,))(process), [float(process.schedule.inverse(-2 * np.log(5.0))), 0.0])
    for bad in ((), (0.5, 80.0), (80.0, 0.0)):
        with pytest.raises(ConfigError, match="descending|above 0"):
            levels(bad)
    with pytest.raises(ConfigError, match="90 lies above 80"):
        levels((90.0,))(process)
    with pytest.raises(ConfigError, match="sigma_min"):
        solver(-1.0)
