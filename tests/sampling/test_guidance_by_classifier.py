"""Classifier guidance as published, by hand: one ancestral step, one DDIM step, and a classifier on another schedule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import Denoised, Denoiser, Process, schedules
from diffusion_jax.sampling import grids, guidance, solvers
from diffusion_jax.spec import Spec
from diffusion_jax.systems import NoisyClassifier
from tests.tiny_systems import NO_PARAMS, FunctionNetwork

T, SCALE = 50, 1.7
BETAS = np.linspace(2e-3, 0.4, T)
BARS = np.cumprod(1 - BETAS)
X0, SLOPE, RAW = 0.4, 0.9, 0.3


def _step(variance: str, solver, index: int, x: jax.Array, scale: float = SCALE) -> np.ndarray:
    """x one step of the chain earlier, without noise: x0 is clipped to 0.4 everywhere, and log p is linear in x."""
    process = Process(schedules.from_betas(BETAS), variance=variance)
    raw = jnp.full_like(x, RAW) if variance == "learned_range" else None

    def function(x_t, t):
        return process.with_x0(Denoised(x_t, x_t, raw), jnp.full_like(x_t, 5.0), x_t, t)

    plain = guidance.static_threshold(Denoiser(function, process), (-1.0, X0))
    denoise = guidance.classifier(plain, lambda x_t, t: SLOPE * x_t.sum((1, 2, 3)), scale)
    t, s = jnp.float32((index + 1) / T), jnp.float32(index / T)
    moved, _ = solver.step(denoise, x, solver.init(x, 1), t, s, lambda name: jnp.zeros_like(x))
    return np.asarray(moved, np.float64)


def _posterior(index: int) -> tuple[float, float, float]:
    """c1, c2 and the variance of q(x_{index} | x_{index + 1}, x0), DDPM's equation 7."""
    bar, before, beta = BARS[index], BARS[index - 1] if index else 1.0, BETAS[index]
    return (
        np.sqrt(before) * beta / (1 - bar),
        np.sqrt(1 - beta) * (1 - before) / (1 - bar),
        beta * (1 - before) / (1 - bar),
    )


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 2, 1)), jnp.float32)


@pytest.mark.parametrize("index", [30, 1, 49])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_the_ancestral_mean_moves_by_the_variance_times_the_gradient(variance, index):
    c1, c2, small = _posterior(index)
    fraction = {"fixed_small": 0.0, "fixed_large": 1.0, "learned_range": (RAW + 1) / 2}[variance]
    sigma = np.exp(fraction * np.log(BETAS[index]) + (1 - fraction) * np.log(small))
    expected = c1 * X0 + c2 * np.asarray(X, np.float64) + sigma * SCALE * SLOPE
    np.testing.assert_allclose(_step(variance, solvers.ddpm(), index, X), expected, rtol=2e-4, atol=2e-5)


def test_the_last_step_of_a_respaced_chain_moves_by_the_variance_of_the_next_kept_one():
    """As published code does, whose chain of the kept steps is a chain of its own."""
    process, solver = Process(schedules.from_betas(BETAS)), solvers.ddpm()
    denoise = Denoiser(lambda x_t, t: process.with_x0(Denoised(x_t, x_t), jnp.full_like(x_t, X0), x_t, t), process)
    guided = guidance.classifier(denoise, lambda x_t, t: SLOPE * x_t.sum((1, 2, 3)), SCALE)
    later, first = 7, 0
    quiet, at = (lambda name: jnp.zeros_like(X)), lambda index: jnp.float32((index + 1) / T)
    moved, state = solver.step(guided, X, solver.init(X, 2), at(later), at(first), quiet)
    last, _ = solver.step(guided, moved, state, at(first), jnp.float32(0), quiet)
    beta = 1 - BARS[later] / BARS[first]
    variance = beta * (1 - BARS[first]) / (1 - BARS[later])
    np.testing.assert_allclose(last, X0 + variance * SCALE * SLOPE, rtol=2e-5)


def test_the_last_ancestral_step_moves_by_the_clipped_variance():
    sigma = _posterior(1)[2]  # index 0 has none of its own
    np.testing.assert_allclose(_step("fixed_small", solvers.ddpm(), 0, X), X0 + sigma * SCALE * SLOPE, rtol=1e-4)


@pytest.mark.parametrize("index", [30, 1])
def test_ddim_shifts_eps_and_does_not_clip_again(index):
    bar, before, x = BARS[index], BARS[index - 1], np.asarray(X, np.float64)
    eps = (x - np.sqrt(bar) * X0) / np.sqrt(1 - bar) - np.sqrt(1 - bar) * SCALE * SLOPE
    x0 = (x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)
    assert (x0 > X0 + 1e-3).all()  # beyond the threshold
    expected = np.sqrt(before) * x0 + np.sqrt(1 - before) * eps
    np.testing.assert_allclose(_step("fixed_small", solvers.ddim(), index, X), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("solver", [solvers.ddpm(), solvers.ddim()], ids=["ddpm", "ddim"])
def test_scale_0_is_no_guidance_to_the_last_bit(solver):
    process = Process(schedules.from_betas(BETAS))
    plain = Denoiser(lambda x_t, t: Denoised(0.1 * x_t, x_t), process)
    assert guidance.classifier(plain, lambda x_t, t: x_t.sum(), 0.0) is plain


def test_other_guidance_after_a_classifier_takes_its_x0_as_it_is():
    process = Process(schedules.from_betas(BETAS))
    plain = Denoiser(lambda x_t, t: Denoised(0.1 * x_t, x_t), process)
    tilted = guidance.classifier(plain, lambda x_t, t: x_t.sum((1, 2, 3)), 1.0)
    t = jnp.full(2, 0.5)
    assert tilted(X, t).classifier_gradient is not None
    for later in (
        guidance.static_threshold(tilted),
        guidance.classifier_free(tilted, plain, 2.0),
        guidance.rescale(tilted, plain),
    ):
        assert later(X, t).classifier_gradient is None


# The classifier's own process ------------------------------------------------------------------------------------------

MEAN, STD = 0.7, 0.3


def _exact_classifier(schedule) -> NoisyClassifier:
    """Of two Gaussian classes with means +-0.7, each pixel independent; its network is told 1000 t."""

    def logits(x, noise, cond):
        alpha, sigma = (value[:, None, None, None] for value in schedule.alpha_sigma(noise / 1000))
        of = lambda mean: -0.5 * ((x - alpha * mean) ** 2 / (alpha**2 * STD**2 + sigma**2)).sum((1, 2, 3))  # noqa: E731
        return jnp.stack([of(MEAN), of(-MEAN)], -1)

    network = FunctionNetwork(logits, (2, 2, 1))
    process = Process(schedule, prediction="x0", noise_input="rescaled_timestep")
    return NoisyClassifier(spec=Spec.image(2, 1), process=process, network=network, num_classes=2)


@pytest.mark.parametrize("schedule", [schedules.cosine_continuous(), schedules.edm(), schedules.straight_line()],
                         ids=lambda schedule: schedule.name)  # fmt: skip
def test_a_classifier_reads_the_images_of_any_process(schedule):
    classifier = _exact_classifier(schedules.cosine_continuous())
    process = Process(schedule, prediction="x0", noise_input="rescaled_timestep")
    t = jnp.array([0.2, 0.5, 0.8])
    alpha, sigma = (np.asarray(value, np.float64)[:, None] for value in process.alpha_sigma(t))
    x = np.asarray(sigma[..., None, None] * np.random.default_rng(0).standard_normal((3, 2, 2, 1)))
    # log p(y | x) of the process's own x: a logistic function of the summed pixels.
    variance = alpha**2 * STD**2 + sigma**2
    margin = (2 * alpha * MEAN * x.reshape(3, -1) / variance).sum(-1)
    function = classifier.log_prob(NO_PARAMS, jnp.array([0, 1, 0]), process)
    found = np.asarray(function(jnp.asarray(x, jnp.float32), t))
    sign = np.array([1, -1, 1])
    np.testing.assert_allclose(found, -np.log1p(np.exp(-sign * margin)), rtol=3e-3, atol=1e-4)
    gradient = jax.grad(lambda x: function(x, t).sum())(jnp.asarray(x, jnp.float32))
    slope = sign / (1 + np.exp(sign * margin)) * (2 * alpha * MEAN / variance)[:, 0]
    np.testing.assert_allclose(gradient.reshape(3, -1), np.broadcast_to(slope[:, None], (3, 4)), rtol=3e-3, atol=1e-4)


def test_noise_beyond_what_a_classifier_has_seen_stays_finite():
    classifier = _exact_classifier(schedules.cosine_continuous(limit=8.0))
    process = Process(schedules.edm(sigma_min=1e-4, sigma_max=1e4), prediction="x0", noise_input="rescaled_timestep")
    x = jnp.concatenate([1e4 * X[:1], X[:1]])
    found = classifier.log_prob(NO_PARAMS, jnp.array([0, 0]), process)(x, jnp.array([1.0, 1e-3]))
    assert np.isfinite(found).all() and (found <= 0).all()


def test_respaced_steps_tell_the_classifier_the_original_step():
    told = FunctionNetwork(lambda x, noise, cond: jnp.stack([noise, 0 * noise], -1), (2, 2, 1))
    process = Process("linear", noise_input="timestep")
    classifier = NoisyClassifier(spec=Spec.image(2, 1), process=process, network=told, num_classes=2)
    times = grids.uniform(10)(process)[:-1]
    seen = np.asarray(classifier.logits(NO_PARAMS, jnp.zeros((10, 2, 2, 1)), jnp.asarray(times, jnp.float32)))[:, 0]
    np.testing.assert_allclose(seen, np.arange(9, -1, -1) * 111, atol=1e-2)
