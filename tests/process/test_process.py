"""Parameterisations, posteriors and reverse variances, against Bayes' rule in float64 and published numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Process, schedules

NAMES = ("linear", "cosine", "cosine_continuous", "edm", "vp_sde", "straight_line")
PREDICTIONS = ("eps", "x0", "v", "score", "velocity", "edm")


def pairs():
    for schedule in NAMES:
        for prediction in PREDICTIONS:
            if schedule != "straight_line" or prediction in ("x0", "v", "velocity"):
                yield pytest.param(Process(schedule, prediction=prediction), id=f"{schedule}-{prediction}")


@pytest.mark.parametrize("process", list(pairs()))
def test_target_and_decode_are_inverse(process):
    """A network that outputs its target tells x0 and eps, at every noise level."""
    rng = np.random.default_rng(0)
    x0, eps = (jnp.asarray(rng.standard_normal((64, 3)), jnp.float32) for _ in range(2))
    t = process.schedule.inverse(jnp.linspace(8.0, -8.0, 64))
    x_t = process.diffuse(x0, t, eps)
    decoded = process.decode(process.target(x0, eps, t), x_t, t)
    alpha, sigma = (np.asarray(v)[:, None] for v in process.alpha_sigma(t))
    # Errors of float32 grow with the ratio that a decoding divides by.
    assert (np.abs(decoded.x0 - x0) < 2e-5 * (1 + sigma / alpha)).all()
    assert (np.abs(decoded.eps - eps) < 2e-5 * (1 + alpha / sigma)).all()
    np.testing.assert_allclose(alpha * decoded.x0 + sigma * decoded.eps, x_t, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("process", list(pairs()))
def test_error_scale(process):
    """Perturb the output at fixed x_t: the x0 error it causes is smaller by k."""
    t = process.schedule.inverse(jnp.linspace(6.0, -6.0, 16))
    x_t, output = jnp.ones((16, 2)), jnp.full((16, 2), 0.3)
    moved = process.decode(output + 1.0, x_t, t).x0 - process.decode(output, x_t, t).x0
    k = process.prediction.x0_error_scale(*process.alpha_sigma(t))
    np.testing.assert_allclose(jnp.abs(moved)[:, 0] * k, 1.0, rtol=2e-2)


def test_edm_preconditioning_numbers():
    """c_in, c_skip, c_out of the published table, at sigma = 1 and sigma_data = 0.5."""
    process = Process("edm", prediction="edm")
    t = process.schedule.inverse(jnp.zeros(1))  # log-SNR 0: sigma 1
    x, noise = process.network_inputs(jnp.ones((1, 1)), t)
    np.testing.assert_allclose(x, 1 / np.sqrt(1.25), rtol=1e-5)
    np.testing.assert_allclose(noise, 0.0, atol=1e-6)
    c_skip = process.decode(jnp.zeros((1, 1)), jnp.ones((1, 1)), t).x0
    c_out = process.decode(jnp.ones((1, 1)), jnp.zeros((1, 1)), t).x0
    np.testing.assert_allclose([c_skip[0, 0], c_out[0, 0]], [0.2, 0.5 / np.sqrt(1.25)], rtol=1e-5)


@pytest.mark.parametrize("schedule", ["edm", "vp_sde", "linear"])
def test_edm_networks_are_fed_unit_variance(schedule):
    """Data of the standard deviation sigma_data, at every level and in every scaling of x_t."""
    process = Process(schedule, prediction={"name": "edm", "sigma_data": 0.3})
    t = process.schedule.inverse(jnp.linspace(6.0, -6.0, 9))
    alpha, sigma = process.alpha_sigma(t)
    x, _ = process.network_inputs(jnp.ones((9, 1)), t)
    np.testing.assert_allclose(x[:, 0] ** 2 * (alpha**2 * 0.3**2 + sigma**2), 1.0, rtol=1e-4)


def bayes(process, s, t):
    """(weight of x0, weight of x_t, variance) of q(x_s | x_t, x0), by multiplying the two Gaussians, in float64."""
    alpha_s, sigma_s = process.schedule.alpha_sigma(np.float64(s))
    alpha_t, sigma_t = process.schedule.alpha_sigma(np.float64(t))
    ratio = alpha_t / alpha_s
    forward = sigma_t**2 - ratio**2 * sigma_s**2  # of x_t given x_s
    precision = 1 / sigma_s**2 + ratio**2 / forward
    return alpha_s / sigma_s**2 / precision, ratio / forward / precision, 1 / precision


@pytest.mark.parametrize("name", NAMES)
@given(s=st.floats(0.02, 0.9), gap=st.floats(0.02, 0.5))
def test_posterior_is_bayes(name, s, gap):
    process = Process(name, prediction="v")
    s, t = np.float64(np.float32(s)), np.float64(np.float32(min(s + gap, 0.999)))
    weight_x0, weight_xt, variance = bayes(process, s, t)
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    times = (jnp.float32(s), jnp.float32(t))
    from_x0, log_variance = process.posterior(one, zero, *times)
    from_xt, _ = process.posterior(zero, one, *times)
    np.testing.assert_allclose([from_x0.item(), from_xt.item()], [weight_x0, weight_xt], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.exp(float(log_variance)), variance, rtol=1e-3)


def test_posterior_numbers_of_the_linear_chain():
    """Published c1, c2, posterior variances and the clipped logarithm at index 0."""
    process = Process(schedules.linear())
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))

    def numbers(index):
        times = (jnp.float32(index / 1000), jnp.float32((index + 1) / 1000))
        c1, log_variance = process.posterior(one, zero, *times)
        return c1.item(), process.posterior(zero, one, *times)[0].item(), float(log_variance)

    np.testing.assert_allclose(numbers(0), [1, 0, -9.8167251], rtol=1e-5)
    np.testing.assert_allclose(numbers(1), [0.5452915, 0.4547085, np.log(5.4531877e-5)], rtol=1e-5)
    np.testing.assert_allclose(numbers(2)[2], np.log(8.5489115e-5), rtol=1e-5)
    np.testing.assert_allclose(numbers(999), [1.2835149e-4, 0.98994868, np.log(0.019999984)], rtol=1e-4)


def test_the_worked_example_of_a_step():
    """abar = 0.36 after 0.64: forward variance 0.4375, posterior variance 0.24609375."""
    process = Process(schedules.from_betas([0.36, 0.4375]), variance="fixed_large")
    denoised = Denoised(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    log = lambda variance: float(process.reverse_log_variance(denoised, 0.5, 1.0, variance))  # noqa: E731
    np.testing.assert_allclose(np.exp([log("fixed_large"), log("fixed_small")]), [0.4375, 0.24609375], rtol=1e-5)


def test_learned_variances():
    """-1 is the posterior variance, +1 the forward variance, 0 their geometric mean; diagonal is read as it is."""
    process = Process(schedules.linear(), variance="learned_range")
    output = jnp.stack([jnp.zeros(3), jnp.array([-1.0, 0.0, 1.0])], -1)[:, None, None]
    denoised = process.decode(output, jnp.zeros((3, 1, 1, 1)), jnp.full(3, 0.5))
    times = (jnp.full(3, 0.499), jnp.full(3, 0.5))
    learned = np.asarray(process.reverse_log_variance(denoised, *times)).ravel()
    small, large = (
        np.asarray(process.reverse_log_variance(denoised, *times, mode)).ravel()[0] for mode in ("fixed_small", "fixed_large")
    )
    np.testing.assert_allclose(learned, [small, (small + large) / 2, large], rtol=1e-5)
    # At index 0 the small end is clipped and the large end is the forward variance itself.
    first = process.reverse_log_variance(denoised, jnp.zeros(3), jnp.full(3, 0.001))
    np.testing.assert_allclose(np.ravel(first)[[0, 2]], [-9.8167251, np.log(1e-4)], rtol=1e-4)
    diagonal = Process(schedules.linear(), variance="learned_diagonal")
    np.testing.assert_array_equal(
        diagonal.reverse_log_variance(diagonal.decode(output, jnp.zeros((3, 1, 1, 1)), jnp.full(3, 0.5)), *times).ravel(),
        [-1.0, 0.0, 1.0],
    )


def test_what_the_network_is_told():
    """Code indices 0..T-1, rescaled to 0..1000; 1000 t in continuous time; ln(sigma) / 4 for EDM."""
    t = jnp.array([1 / 4000, 1.0])
    tell = lambda *args, **kwargs: Process(*args, **kwargs).noise_level(t)  # noqa: E731
    np.testing.assert_allclose(tell(schedules.cosine(4000), noise_input="timestep"), [0, 3999], atol=1e-3)
    np.testing.assert_allclose(tell(schedules.cosine(4000)), [0, 999.75], atol=1e-3)
    np.testing.assert_allclose(tell("vp_sde"), [0.25, 1000])
    np.testing.assert_allclose(tell("edm", prediction="edm")[1], np.log(80) / 4, rtol=1e-5)
    np.testing.assert_allclose(tell("linear", noise_input="log_snr")[1], -10.1176733, rtol=1e-5)


def test_bind_checks_the_output():
    x = jnp.zeros((2, 4, 4, 1))
    denoiser = Process("linear", variance="learned_range").bind(lambda params, x, noise, cond: x, {})
    with pytest.raises(ConfigError, match="needs 2"):
        denoiser(x, jnp.full(2, 0.5))
    denoiser = Process("linear").bind(lambda params, x, noise, cond: x[:, :1, :1], {})
    with pytest.raises(ConfigError, match="does not fit its input"):
        denoiser(x, jnp.full(2, 0.5))


def test_bind_feeds_the_network_and_broadcasts_time():
    process = Process("edm", prediction="edm")
    seen = {}

    def apply(params, x, noise, cond, *, train):
        seen.update(x=x, noise=noise, cond=cond, train=train)
        return x * params

    denoiser = process.bind(apply, 2.0, {"label": 3}, train=True)
    x = jax.random.normal(jax.random.key(0), (3, 2))
    result = denoiser(x, 0.7)
    assert seen["noise"].shape == (3,) and seen["cond"] == {"label": 3} and seen["train"]
    alpha, sigma = process.alpha_sigma(0.7)
    np.testing.assert_allclose(alpha * result.x0 + sigma * result.eps, x, rtol=1e-4, atol=1e-4)
