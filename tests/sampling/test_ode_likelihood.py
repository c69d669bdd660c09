"""Likelihoods by the probability-flow ODE, against closed forms: Gaussian and mixture data with exact denoisers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.process.schedules import alpha_sigma_from_log_snr
from diffusion_jax.sampling import likelihood
from tests.oracles import Mixture

DIMS = 4


@functools.cache
def gaussian() -> tuple[Mixture, np.ndarray, np.ndarray]:
    """Correlated data of standard deviations 1 to 0.05, draws of it, and the bits per dimension of their density."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((DIMS, DIMS)))[0]
    mean, variance = rng.uniform(-0.5, 0.5, DIMS), np.array([1.0, 0.3, 0.04, 0.0025])
    data = Mixture(np.ones(1), mean[None], variance[None], rotation)
    x = data.from_axes(mean + np.sqrt(variance) * rng.standard_normal((256, DIMS)))
    density = stats.multivariate_normal(rotation @ mean, rotation @ np.diag(variance) @ rotation.T)
    return data, x.astype(np.float32), density.logpdf(x)


def nats(process, data, x, key=None, **settings):
    run = jax.jit(lambda x: likelihood.log_likelihood(data.denoiser(process), x, key, **settings))
    return np.asarray(run(jnp.asarray(x, jnp.float32)))


def log_density_at(process, data, x, level):
    """Nats of x, taken for x_t / alpha where sigma / alpha is `level`: what a flow that begins there can know."""
    alpha, sigma = alpha_sigma_from_log_snr(np.full(1, -2 * np.log(level)), process.schedule.family)
    return np.asarray(data.log_density(jnp.asarray(alpha * x), alpha, sigma)) + x.shape[1] * np.log(alpha)


@pytest.mark.parametrize(
    ("schedule", "prediction", "lowest", "each"),
    [
        ("linear", "eps", 0.01, 3e-3),  # a chain begins with its first step
        ("zero_terminal_snr", "v", 0.01, 1e-3),
        ("cosine", "v", 0.0064, 1e-3),
        ("vp_sde", "eps", 0.001, 3e-3),
        ("edm", "edm", 0.001, 8e-3),  # its noise of 80 still tells where the mean is
        ("straight_line", "velocity", 0.001, 1e-3),
    ],
)
def test_gaussian_data_have_their_density(schedule, prediction, lowest, each):
    """In bits per dimension: the mean to 1e-3, and each example that of the density with the lowest level's noise."""
    data, x, exact = gaussian()
    process = Process(schedule, prediction=prediction)
    found = nats(process, data, x, divergence="exact") / (DIMS * np.log(2))
    assert abs(found.mean() - exact.mean() / (DIMS * np.log(2))) < 1e-3
    np.testing.assert_allclose(found, log_density_at(process, data, x, lowest) / (DIMS * np.log(2)), atol=each)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_order_of_integration(method, order):
    """Against the density at the flow's lowest level, and to a level whose noise is all: integration alone is in error."""
    data = Mixture(np.array([0.3, 0.7]), np.array([[-0.8], [0.6]]), np.array([[0.16], [0.36]]))
    process, levels = Process("straight_line", prediction="velocity"), (0.05, 1e5)
    x = np.linspace(-1.2, 1.2, 9)[:, None]
    exact = log_density_at(process, data, x, levels[0])
    counts = {1: (40, 160), 2: (20, 80), 4: (12, 24)}[order]
    errors = [
        np.abs(nats(process, data, x, divergence="exact", method=method, num_steps=n, levels=levels) - exact).max()
        for n in counts
    ]
    measured = np.log(errors[0] / errors[1]) / np.log(counts[1] / counts[0])
    assert measured > order - 0.35, (errors, measured)


def test_hutchinsons_estimate_is_unbiased_and_its_probes_belong_to_samples():
    data, x, exact = gaussian()
    process, key = Process("vp_sde", prediction="eps"), jax.random.key(1)
    repeated = np.repeat(x[:2], 1024, axis=0)
    found = nats(process, data, repeated, key).reshape(2, 1024)
    error = (found.mean(1) - exact[:2]) / (found.std(1) / 32)
    assert (np.abs(error) < 4).all() and (found.std(1) > 0.05).all()
    more = nats(process, data, repeated[:512], key, probes=4)
    assert 0.3 < more.std() / found[0, :512].std() < 0.75  # half, by theory
    # Sample i has the same number in another batch, place and size.
    some = nats(process, data, repeated[[7, 3]], key, indices=np.array([7, 3]))
    np.testing.assert_allclose(some, found[0, [7, 3]], rtol=1e-5, atol=1e-4)


def test_bits_per_dim_of_levels():
    """Of a Gaussian cut into 256 levels: the bits are those of the shares of the levels."""
    std, process = 0.3, Process("vp_sde", prediction="eps")
    data = Mixture.gaussian([0.0] * 4, [std**2] * 4)
    levels = np.arange(256)
    shares = np.diff(stats.norm(0, std).cdf((np.arange(257) - 0.5) / 127.5 - 1))
    rng = np.random.default_rng(0)
    x = (rng.choice(levels, (2048, 4), p=shares / shares.sum()) / 127.5 - 1).astype(np.float32)
    run = jax.jit(lambda x, key: likelihood.ode_bits_per_dim(data.denoiser(process), x, key, divergence="exact"))
    found = np.asarray(run(x, jax.random.key(0)))
    exact = -np.log2(shares[np.rint((x + 1) * 127.5).astype(int)]).mean(-1)
    assert abs(found.mean() - exact.mean()) < 2e-3  # 128 for 127.5 would be 6e-3
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_dequantisation_is_uniform_within_a_level():
    x = jnp.zeros((4000, 2))
    noisy = np.asarray(likelihood.dequantize(x, jax.random.key(0))) * 127.5
    assert stats.kstest(noisy.ravel(), stats.uniform(-0.5, 1).cdf).pvalue > 0.01
    again = likelihood.dequantize(x[:2], jax.random.key(0), indices=np.array([5, 9]))
    np.testing.assert_array_equal(np.asarray(again) * 127.5, noisy[[5, 9]])


def test_levels_follow_the_range_of_the_data():
    process, x = Process("vp_sde"), jnp.full((3, 2), 5.0)
    denoiser, key = Mixture.gaussian([5.0] * 2, [0.3] * 2).denoiser(process), jax.random.key(0)
    noisy = likelihood.dequantize(x, key, data_range=(2.0, 8.0))
    np.testing.assert_allclose(noisy - 5, 3 * likelihood.dequantize(0 * x, key), atol=1e-6)
    settings = {"num_steps": 4, "divergence": "exact"}
    nats = likelihood.log_likelihood(denoiser, noisy, key, **settings)
    bits = likelihood.ode_bits_per_dim(denoiser, x, key, data_range=(2.0, 8.0), **settings)
    np.testing.assert_allclose(bits, -nats / (2 * np.log(2)) - np.log2(6 / 255), rtol=1e-5)


def test_bad_input():
    data, x, _ = gaussian()
    denoiser = data.denoiser(Process("edm", prediction="edm"))
    run = functools.partial(likelihood.log_likelihood, denoiser, jnp.asarray(x))
    with pytest.raises(ConfigError, match="need a key"):
        run()
    with pytest.raises(ConfigError, match="did you mean 'rk4'"):
        run(divergence="exact", method="rk")
    with pytest.raises(ConfigError, match="divergence: unknown"):
        run(divergence="trace")
    with pytest.raises(ConfigError, match="at least 1"):
        run(divergence="exact", num_steps=0)
    with pytest.raises(ConfigError, match="must rise"):
        run(divergence="exact", levels=(1.0, 0.1))
    with pytest.raises(ConfigError, match="before the lowest level"):
        run(divergence="exact", levels=(100.0, 200.0))
    with pytest.raises(ConfigError, match="indices of the shape"):
        run(jax.random.key(0), indices=np.arange(3))
