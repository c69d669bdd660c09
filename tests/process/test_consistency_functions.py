"""Consistency functions: their boundary, coefficients, noise levels and distances by hand; Heun's step between levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from diffusion_jax.process import Process, consistency
from diffusion_jax.process.consistency import Growing, Ladder, target_decay
from diffusion_jax.sampling.solvers.runge_kutta import heun_step
from tests.oracles import Mixture

# The function ----------------------------------------------------------------------------------------------------------


def test_at_the_smallest_level_it_is_the_identity_whatever_the_network_says():
    process = Process("edm", {"name": "consistency"})
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    denoise = process.bind(lambda params, x, noise, cond: 1e3 * jnp.cos(x), {})
    t = consistency.time_of(process, jnp.array([0.002, 0.001, 0.002]))
    assert (denoise(x, t).x0 == x).all()  # to the last bit


def test_coefficients_at_a_level_by_hand():
    """sigma = 1.002, data of standard deviation 0.5: c_skip = 0.25 / 1.25, c_out = 0.5 / sqrt(1.254004), c_in beside it."""
    process = Process("edm", {"name": "consistency"}, noise_input="log_sigma")
    seen = {}

    def apply(params, x, noise, cond):
        seen.update(x=x, noise=noise)
        return jnp.full_like(x, 3.0)

    t = consistency.time_of(process, jnp.array([1.002]))
    x0 = process.bind(apply, {})(jnp.full((1, 2), 2.0), t).x0
    np.testing.assert_allclose(x0, 2 * 0.2 + 3 * 0.5 / np.sqrt(1.254004), rtol=1e-5)
    np.testing.assert_allclose(seen["x"], 2 / np.sqrt(1.254004), rtol=1e-5)
    np.testing.assert_allclose(seen["noise"], np.log(1.002) / 4, atol=1e-5)


def test_its_target_is_what_makes_it_right():
    process = Process("edm", {"name": "consistency"})
    x0, eps = jax.random.normal(jax.random.key(1), (2, 3, 5))
    t = consistency.time_of(process, jnp.array([0.01, 1.0, 70.0]))
    target, x_t = process.target(x0, eps, t), process.diffuse(x0, t, eps)
    np.testing.assert_allclose(process.decode(target, x_t, t).x0, x0, atol=1e-4)
    np.testing.assert_allclose(process.decode(target, x_t, t).eps, eps, atol=1e-2)


# Levels ----------------------------------------------------------------------------------------------------------------


def test_levels_are_the_grid_of_edm():
    """Karras et al. 2022: the published list of 18 levels, here from data to noise."""
    published = [0.002, 0.00752802, 0.022934518, 0.059947311, 0.13951647, 0.29644228, 0.58534812, 1.0881706, 1.9233398]
    found = Ladder().level(jnp.arange(18), 18)
    np.testing.assert_allclose(found[:9], published, rtol=2e-5)
    np.testing.assert_allclose(found[-1], 80.0, rtol=1e-5)
    assert (Ladder().below(found[:-1] * 1.001, 18) == jnp.arange(17)).all()


def test_growing_levels_and_their_target_decay():
    """Song et al. 2023, appendix C, with s0 = 2, s1 = 150 and K = 800,000, for CIFAR-10 with mu0 = 0.9."""
    levels = Growing()
    steps = [0, 1_000, 100_000, 400_000, 800_000]
    assert [int(levels(step)) for step in steps] == [2, 6, 54, 107, 151] and levels.last == 151
    np.testing.assert_allclose(
        [target_decay(0.9, levels, k) for k in steps], np.exp(2 * np.log(0.9) / [2, 6, 54, 107, 151]), rtol=1e-6
    )
    np.testing.assert_allclose(target_decay(0.95, consistency.Fixed(40), 7), 0.95, rtol=1e-6)


def test_log_normal_pairs_have_the_mass_between_their_levels():
    """Song & Dhariwal 2023, section 3.5: p(i) ~ erf((ln s_{i+1} - mean) / (sqrt(2) std)) - erf(the same of s_i)."""
    ladder, count, draws = Ladder(), 11, 40_000
    index = consistency.log_normal_pairs()(jax.random.key(0), draws, ladder, count)
    log_levels = np.log(np.asarray(ladder.level(jnp.arange(count), count), np.float64))
    mass = np.diff(stats.norm.cdf(log_levels, -1.1, 2.0))
    expected = draws * mass / mass.sum()
    found = np.bincount(np.asarray(index), minlength=count - 1)
    assert stats.chisquare(found, expected).pvalue > 1e-3
    uniform = consistency.uniform_pairs()(jax.random.key(0), draws, ladder, count)
    assert stats.chisquare(np.bincount(np.asarray(uniform))).pvalue > 1e-3


def test_pseudo_huber_by_hand():
    """3072 dimensions: c = 0.00054 sqrt(3072) = 0.02993; a difference of 0.01 everywhere has the norm 0.55426."""
    difference = jnp.full((1, 32, 32, 3), 0.01)
    found = consistency.METRICS["pseudo_huber"](difference)
    np.testing.assert_allclose(found, [np.sqrt(0.55426**2 + 0.02993**2) - 0.02993], rtol=1e-4)


def test_heun_is_of_second_order_at_times_of_each_examples_own():
    process = Process("edm", "edm")
    denoise = Mixture.gaussian([0.5, -0.3], [0.3**2, 0.6**2]).denoiser(process)
    x = jnp.array([[1.0, -0.5], [2.0, 1.0]])

    def error(pieces: int) -> float:
        levels = np.linspace([1.0, 3.0], [0.5, 1.0], pieces + 1)
        moved = x
        for upper, lower in zip(levels[:-1], levels[1:], strict=True):
            moved = heun_step(denoise, moved, *(consistency.time_of(process, jnp.asarray(level)) for level in (upper, lower)))
        mean, variance = np.array([0.5, -0.3]), np.array([0.09, 0.36])
        exact = mean + (x - mean) * np.sqrt((variance + levels[-1][:, None] ** 2) / (variance + levels[0][:, None] ** 2))
        return float(jnp.abs(moved - exact).max())

    assert 1.6 < np.log2(error(2) / error(4)) < 2.4
