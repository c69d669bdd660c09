"""Bits per dimension against integrals and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process, likelihood, schedules
from tests.oracles import Mixture


def test_kl_is_its_integral():
    p, q = stats.norm(0.3, 0.7), stats.norm(-0.2, 1.1)
    exact = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -10, 10)[0]
    found = likelihood.normal_kl(jnp.array(0.3), 2 * jnp.log(0.7), jnp.array(-0.2), 2 * jnp.log(1.1))
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 0.01), (-1.0, 0.3), (0.31, 0.002)])
def test_the_bins_are_a_distribution(mean, std):
    """The probabilities of the 256 levels sum to 1, but for the floor of 1e-12."""
    levels = jnp.linspace(-1, 1, 256)
    log_p = likelihood.discretized_gaussian_log_likelihood(levels, jnp.full(256, mean), jnp.full(256, 2 * np.log(std)))
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, atol=1e-4)
    middle = 100
    x = float(levels[middle])
    exact = stats.norm(mean, std).cdf(x + 1 / 255) - stats.norm(mean, std).cdf(x - 1 / 255)
    if exact > 1e-10:
        np.testing.assert_allclose(jnp.exp(log_p[middle]), exact, rtol=1e-2)


def test_prior_of_the_linear_chain():
    """7.28e-6 bits per dimension at mean square 1/4."""
    x0 = jnp.full((1, 4, 4, 1), 0.5)
    np.testing.assert_allclose(likelihood.prior_term(Process(schedules.linear()), x0), 7.28e-6, rtol=5e-2)


def closed_form_terms(process, count, variance):
    """KL terms of N(0, variance) data under the exact denoiser and the posterior's variance, bits, for s = 1/T, ...

    The two means differ by (weight of x0) * (x0 - E[x0 | x_t]), whose mean square is the variance that x_t leaves.
    """
    steps = np.arange(1, count + 1) / count
    alpha, sigma = process.schedule.alpha_sigma(steps)
    alpha_s, sigma_s, alpha, sigma = alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]
    forward = sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2
    weight = alpha_s * forward / sigma**2
    remaining = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    return 0.5 * weight**2 * remaining / (forward * sigma_s**2 / sigma**2) / np.log(2)


@pytest.mark.parametrize(("name", "steps"), [("cosine", 200), ("linear", 1000)])
def test_the_sum_of_the_terms_on_gaussian_data(name, steps):
    """With the exact denoiser, term by term and in sum, to Monte Carlo error."""
    process = Process({"name": name, "num_steps": steps})
    data = Mixture.gaussian([0.0], [0.3**2])
    # Stratified data have the exact variance: what is left to chance is the noise.
    x0 = jnp.asarray(0.3 * stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None], jnp.float32)
    run = jax.jit(lambda key: likelihood.bits_per_dim(data.denoiser(process), x0, key, clip=False))
    found = run(jax.random.key(0))
    exact = closed_form_terms(process, steps, 0.3**2)
    np.testing.assert_allclose(found.terms.sum(-1) + found.prior, found.total, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(found.terms).mean(0)[1:], exact, rtol=0.06, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found.terms)[:, 1:].mean(0).sum(), exact.sum(), rtol=4e-3)


def test_a_network_of_zeros_has_a_finite_bound():
    process = Process("cosine", prediction="eps")
    denoiser = process.bind(lambda params, x, noise, cond: jnp.zeros_like(x), {})
    x0 = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
    assert np.isfinite(likelihood.bits_per_dim(denoiser, x0, jax.random.key(0), num_steps=20).total).all()


def test_continuous_processes_need_a_number_of_steps():
    process = Process("vp_sde")
    denoiser = Denoiser(lambda x, t: None, process)
    with pytest.raises(ConfigError, match="needs num_steps"):
        likelihood.bits_per_dim(denoiser, jnp.zeros((1, 2)), jax.random.key(0))
