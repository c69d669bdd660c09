"""Bits per dimension against integrals and closed forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.process import Denoiser, Process, likelihood, schedules
from tests.oracles import Mixture


def test_kl_is_its_integral():
    p, q = stats.norm(0.3, 0.7), stats.norm(-0.2, 1.1)
    exact = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -10, 10)[0]
    found = likelihood.normal_kl(jnp.array(0.3), 2 * jnp.log(0.7), jnp.array(-0.2), 2 * jnp.log(1.1))
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_kl_keeps_its_digits():
    """Of nearly equal variances, and of variances that float32 cannot hold."""
    gap = np.float64(np.float32(1e-3))
    found = likelihood.normal_kl(jnp.zeros(()), jnp.float32(gap), jnp.zeros(()), jnp.zeros(()))
    np.testing.assert_allclose(found, 0.5 * (np.expm1(gap) - gap), rtol=1e-3)
    tiny = -150.0
    found = likelihood.normal_kl(jnp.float32(1e-30), jnp.float32(tiny), jnp.zeros(()), jnp.float32(tiny))
    np.testing.assert_allclose(found, 0.5 * (1e-30 * np.exp(-tiny / 2)) ** 2, rtol=1e-3)


@pytest.mark.slow
def test_the_tanh_approximation():
    """Close to the normal distribution function, but not it."""
    x = np.linspace(-5, 5, 1001)
    error = np.abs(np.asarray(likelihood.tanh_cdf(jnp.asarray(x, jnp.float32))) - stats.norm.cdf(x))
    assert 1e-5 < error.max() < 3e-4
    x0, apply = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1), lambda params, x, noise, cond: x * 0.1
    denoisers = [Process("cosine", decoder=decoder).bind(apply, {}) for decoder in ("exact", "tanh")]
    exact, approximate = (likelihood.bits_per_dim(denoiser, x0, jax.random.key(0), 10) for denoiser in denoisers)
    assert 0 < abs(exact.terms[0, 0] - approximate.terms[0, 0]) < 0.05
    np.testing.assert_array_equal(exact.terms[:, 1:], approximate.terms[:, 1:])


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 0.01), (-1.0, 0.3), (0.31, 0.002)])
def test_the_bins_are_a_distribution(mean, std, tanh):
    """The probabilities of the 256 levels sum to 1, but for the floor of 1e-12."""
    levels = jnp.linspace(-1, 1, 256)
    log_variance = jnp.full(256, 2 * np.log(std))
    log_p = likelihood.discretized_gaussian_log_likelihood(levels, jnp.full(256, mean), log_variance, tanh)
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, atol=1e-4)
    middle = 100
    x = float(levels[middle])
    exact = stats.norm(mean, std).cdf(x + 1 / 255) - stats.norm(mean, std).cdf(x - 1 / 255)
    if exact > 1e-10 and not tanh:
        np.testing.assert_allclose(jnp.exp(log_p[middle]), exact, rtol=1e-2)


def test_bins_follow_the_range_of_the_data():
    """Levels 3 x + 5 have the probabilities of the levels x, at the ends too."""
    levels, probability = np.linspace(-1, 1, 256), likelihood.discretized_gaussian_log_likelihood
    run = lambda x, mean, std, **range: probability(*jnp.float32([x, mean + 0 * x, 2 * np.log(std) + 0 * x]), **range)  # noqa: E731
    found = run(3 * levels + 5, 3 * 0.3 + 5, 3 * 0.2, data_range=(2.0, 8.0))
    np.testing.assert_allclose(found, run(levels, 0.3, 0.2), atol=2e-3)


def test_bins_far_from_the_mean_keep_their_digits():
    """Six deviations away on either side the distribution function is 0, or in float32 1."""
    mean, std, x = 0.0, 0.1, np.array([-153, 153]) / 255
    found = likelihood.discretized_gaussian_log_likelihood(jnp.float32(x), jnp.float32(mean), jnp.float32(2 * np.log(std)))
    exact = np.log(np.diff(stats.norm.cdf(-np.abs(x) + np.array([[-1], [1]]) / 255, mean, std), axis=0))[0]
    np.testing.assert_allclose(found, exact, atol=1e-2)


def test_prior_where_noise_explodes():
    """Data beside noise of the deviation 80: the variances are equal, and the KL is the squared distance over twice them."""
    x0 = jnp.linspace(-1, 1, 12).reshape(2, 3, 2)
    expected = np.square(x0).mean((1, 2)) / (2 * 80**2) / np.log(2)
    np.testing.assert_allclose(likelihood.prior_term(Process("edm"), x0), expected, rtol=1e-3)


def test_prior_of_the_linear_chain():
    """7.28e-6 bits per dimension at mean square 1/4."""
    x0 = jnp.full((1, 4, 4, 1), 0.5)
    np.testing.assert_allclose(likelihood.prior_term(Process(schedules.linear()), x0), 7.28e-6, rtol=1e-3)


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


@pytest.mark.parametrize(
    ("schedule", "prediction", "steps", "first"),
    [
        ("cosine", "eps", 1000, 1),
        ("linear", "v", 1000, 1),
        ("edm", "edm", 40, 12),  # before, sigma lies below the digits of x0
        ("vp_sde", "eps", 100, 1),
        ("straight_line", "v", 50, 1),
    ],
)
def test_the_terms_on_gaussian_data(schedule, prediction, steps, first):
    """With the exact denoiser, to 1e-3: the terms are quadratic in x0 and eps, whose signs alone have their moments."""
    process, std = Process(schedule, prediction=prediction), 0.3
    denoiser = Mixture.gaussian([0.0], [std**2]).denoiser(process)
    x0, eps = (jnp.array(signs)[:, None] for signs in ([std, std, -std, -std], [1.0, -1.0, 1.0, -1.0]))

    def term(index):
        s, t = index / steps, (index + 1) / steps
        x_t = process.diffuse(x0, t, eps)
        return likelihood.vlb_term(process, denoiser(x_t, t), x0, x_t, s, t).mean()

    found = np.asarray(jax.jit(jax.vmap(term))(jnp.arange(first, steps, dtype=jnp.float32)))
    exact = closed_form_terms(process, steps, std**2)[first - 1 :]
    np.testing.assert_allclose(found, exact, rtol=3e-3, atol=1e-7)
    np.testing.assert_allclose(found.sum(), exact.sum(), rtol=1e-3)


def test_the_loop_over_all_terms():
    """Terms, prior, their sum and the errors of x0, to Monte Carlo error."""
    process = Process({"name": "cosine", "num_steps": 50})
    data = Mixture.gaussian([0.0], [0.3**2])
    # Stratified data have the exact variance: what is left to chance is the noise.
    x0 = jnp.asarray(0.3 * stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None], jnp.float32)
    run = jax.jit(lambda key: likelihood.bits_per_dim(data.denoiser(process), x0, key, clip=False))
    found = run(jax.random.key(0))
    assert found.terms.shape == found.x0_mse.shape == (20_000, 50)
    np.testing.assert_allclose(found.terms.sum(-1) + found.prior, found.total, rtol=1e-4)
    exact = closed_form_terms(process, 50, 0.3**2)
    np.testing.assert_allclose(np.asarray(found.terms).mean(0)[1:], exact, rtol=0.06, atol=1e-6)
    alpha, sigma = process.schedule.alpha_sigma(np.arange(1, 51) / 50)
    remaining = 0.3**2 * sigma**2 / (alpha**2 * 0.3**2 + sigma**2)
    np.testing.assert_allclose(np.asarray(found.x0_mse).mean(0), remaining, rtol=0.06)


@pytest.mark.slow
def test_predictions_are_clipped_on_request():
    process = Process("cosine", prediction="x0")
    denoiser = process.bind(lambda params, x, noise, cond: jnp.full_like(x, 5.0), {})
    run = lambda clip: likelihood.bits_per_dim(denoiser, jnp.ones((2, 3)), jax.random.key(0), 5, clip=clip)  # noqa: E731
    np.testing.assert_allclose(run(True).x0_mse, 0.0)
    np.testing.assert_allclose(run(False).x0_mse, 16.0)
    assert (run(True).total < run(False).total).all()


def test_a_network_of_zeros_has_a_finite_bound():
    process = Process("cosine", prediction="eps")
    denoiser = process.bind(lambda params, x, noise, cond: jnp.zeros_like(x), {})
    x0 = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
    assert np.isfinite(likelihood.bits_per_dim(denoiser, x0, jax.random.key(0), num_steps=20).total).all()


def test_levels_far_below_float32_do_not_overflow():
    """sigma = 80 t^7 is 1e-23 at the first of 2,000 steps."""
    denoiser = Process("edm", prediction="edm").bind(lambda params, x, noise, cond: jnp.zeros_like(x), {})
    assert np.isfinite(likelihood.bits_per_dim(denoiser, jnp.full((1, 2), 0.3), jax.random.key(0), 2000).total).all()


@pytest.mark.parametrize(("num_steps", "message"), [(None, "needs num_steps, such as"), (0, "at least 2"), (1, "at least 2")])
def test_numbers_of_steps_that_make_no_chain(num_steps, message):
    denoiser = Denoiser(lambda x, t: None, Process("vp_sde"))
    with pytest.raises(ConfigError, match=message):
        likelihood.bits_per_dim(denoiser, jnp.zeros((1, 2)), jax.random.key(0), num_steps)


def test_pixels_must_be_scaled():
    with pytest.raises(DataError, match="uint8.*127.5"):
        likelihood.check_data(jnp.zeros(3, jnp.uint8))


@pytest.mark.slow
def test_an_exact_reverse_chain_reaches_the_entropy():
    """Bits per dimension of Gaussian data are their entropy to 1e-3, for ten steps, with variances exact as well.

    Then p(x_s | x_t) = q(x_s | x_t) at every step, and the terms sum to the entropy of x0 in bins of 2/255 plus
    KL(q(x_1) || p(x_1)).
    """
    steps, std, count = 10, 0.2, 400_000
    chain = schedules.from_betas(np.linspace(0.01, 0.5, steps))
    alpha, sigma = (np.append(start, v) for start, v in zip((1.0, 0.0), chain.alpha_sigma(np.arange(1, 11) / 10), strict=True))
    marginal = alpha**2 * std**2 + sigma**2
    covariance = alpha[1:] / alpha[:-1] * marginal[:-1]
    log_variance = jnp.asarray(np.log(marginal[:-1] - covariance**2 / marginal[1:]), jnp.float32)
    means = Mixture.gaussian([0.0], [std**2]).denoiser(Process(chain))

    def function(x, t):
        return means(x, t)._replace(raw_variance=0 * x + log_variance[jnp.round(t * steps).astype(int) - 1][:, None])

    denoiser = Denoiser(function, Process(chain, variance="learned_diagonal"))
    x0 = jnp.asarray(std * stats.norm.ppf((np.arange(count) + 0.5) / count)[:, None], jnp.float32)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})  # much to compute
    def run(key):
        found = likelihood.bits_per_dim(denoiser, x0, key, clip=False)
        return found.terms.mean(0).sum() + found.prior.mean(), found.total.mean()

    sums, totals = np.mean([run(key) for key in jax.random.split(jax.random.key(0), 10)], axis=0)
    entropy = 0.5 * np.log2(2 * np.pi * np.e * std**2) - np.log2(2 / 255)
    prior = 0.5 * (marginal[-1] - 1 - np.log(marginal[-1])) / np.log(2)
    assert abs(sums - (entropy + prior)) < 1e-3, (sums, entropy + prior)
    np.testing.assert_allclose(totals, sums, rtol=1e-5)


def test_the_error_of_eps_is_that_of_x0_in_other_units():
    process = Process({"name": "cosine", "num_steps": 6})
    denoiser = process.bind(lambda params, x, noise, cond: 0.3 * x, {})
    x0 = jnp.linspace(-0.9, 0.9, 32).reshape(2, 4, 4, 1)
    found = likelihood.bits_per_dim(denoiser, x0, jax.random.key(0))
    snr = np.exp(process.schedule.log_snr(np.arange(1, 7) / 6))
    np.testing.assert_allclose(found.eps_mse, snr * np.asarray(found.x0_mse), rtol=1e-3)
