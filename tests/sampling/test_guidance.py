"""Guidance on mixtures, whose conditional densities are known: scores, weights, thresholds."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Denoiser, Process
from diffusion_jax.sampling import grids, guidance, sample, solvers
from tests.oracles import BIMODAL, LINE, QUICK

PROCESSES = {
    "vp_sde": Process("vp_sde", "eps"),
    "edm": Process("edm", "edm"),
    "straight_line": Process("straight_line", "velocity"),
}
CLASS = 0  # component 0 of the mixture is the class asked for


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def points(process, t, count=24):
    """x_t and its times, from the marginal."""
    x = jnp.asarray(BIMODAL.marginal(process, t, count), jnp.float32)
    return x, jnp.full(count, t, jnp.float32)


def score_of(process, log_density, x, t):
    """The gradient of the log-density of x_t."""
    alpha, sigma = (value[:, None] for value in process.alpha_sigma(t))
    return jax.grad(lambda x: log_density(x, alpha, sigma).sum())(x)


def check_score(process, denoised, x, t, score):
    """eps is -sigma times the score, and x0 is consistent with it."""
    alpha, sigma = (value[:, None] for value in process.alpha_sigma(t))
    np.testing.assert_allclose(denoised.eps, -sigma * score, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(alpha * denoised.x0 + sigma * denoised.eps, x, rtol=1e-4, atol=1e-4)


def log_prob(process, data=BIMODAL):
    """log p(CLASS | x_t), exactly."""

    def function(x, t):
        joint = data.log_joint(x, *(value[:, None] for value in process.alpha_sigma(t)))
        return joint[:, CLASS] - jax.nn.logsumexp(joint, axis=-1)

    return function


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("t", [0.8, pytest.param(0.3, marks=pytest.mark.slow)])
def test_classifier_free_is_the_score_of_the_tilted_density(process, t, scale):
    """p(x_t)^(1 - s) p(x_t | class)^s, by automatic differentiation of the densities."""
    cond, uncond = BIMODAL.component(CLASS), BIMODAL
    guided = guidance.classifier_free(cond.denoiser(process), uncond.denoiser(process), scale)
    x, t = points(process, t)
    tilted = lambda *args: (1 - scale) * uncond.log_density(*args) + scale * cond.log_density(*args)  # noqa: E731
    check_score(process, guided(x, t), x, t, score_of(process, tilted, x, t))


def test_classifier_free_takes_a_scale_per_sample(process):
    cond, uncond = BIMODAL.component(CLASS).denoiser(process), BIMODAL.denoiser(process)
    x, t = points(process, 0.5, count=3)
    each = guidance.classifier_free(cond, uncond, jnp.array([1.0, 3.0, 0.0]))(x, t)
    for row, scale in enumerate((1.0, 3.0, 0.0)):
        one = guidance.classifier_free(cond, uncond, scale)(x, t)
        np.testing.assert_allclose(each.x0[row], one.x0[row], atol=1e-5)


def test_negative_conditioning_is_another_unconditional():
    """Away from component 1: at scale 2 the score is 2 grad log p(x | 0) - grad log p(x | 1)."""
    process = PROCESSES["vp_sde"]
    wanted, avoided = BIMODAL.component(0), BIMODAL.component(1)
    x, t = points(process, 0.4)
    guided = guidance.classifier_free(wanted.denoiser(process), avoided.denoiser(process), 2.0)(x, t)
    expected = 2 * score_of(process, wanted.log_density, x, t) - score_of(process, avoided.log_density, x, t)
    check_score(process, guided, x, t, expected)


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
@pytest.mark.parametrize("t", [0.8, pytest.param(0.3, marks=pytest.mark.slow)])
def test_classifier_adds_its_gradient_to_the_score(process, t, scale):
    guided = guidance.classifier(BIMODAL.denoiser(process), log_prob(process), scale)
    x, t = points(process, t)

    def tilted(*args):
        """log p(x_t) + scale * log p(CLASS | x_t), by Bayes."""
        unconditional = BIMODAL.log_density(*args)
        return unconditional + scale * (BIMODAL.component(CLASS).log_density(*args) - unconditional)

    denoised = guided(x, t)
    check_score(process, denoised, x, t, score_of(process, tilted, x, t))
    if scale == 1:  # Bayes: the exact conditional denoiser
        exact = BIMODAL.component(CLASS).denoiser(process)(x, t)
        np.testing.assert_allclose(denoised.x0, exact.x0, atol=5e-4)


def test_classifier_at_zero_snr_leaves_the_prediction():
    process = PROCESSES["straight_line"]
    x, t = points(process, 1.0)
    plain, guided = BIMODAL.denoiser(process), guidance.classifier(BIMODAL.denoiser(process), log_prob(process), 4.0)
    np.testing.assert_array_equal(guided(x, t).x0, plain(x, t).x0)
    assert guidance.classifier(plain, log_prob(process), 0.0) is plain


def share_of_class(denoiser, count=4000):
    """The share of samples of LINE nearer to component 0."""
    run = jax.jit(lambda key: sample(denoiser, solvers.dpmpp_2m(), grids.karras(30), key, (count, 1)), compiler_options=QUICK)
    return float((run(jax.random.key(0)) < -0.1).mean())


def test_sampled_weights_follow_the_guidance():
    """Unguided: the mixture's weights. Tilted by a classifier that is right: only the class. Tilted against: without it."""
    process = PROCESSES["vp_sde"]
    plain, tilt = LINE.denoiser(process), log_prob(process, LINE)
    expected = float(LINE.cdf(np.array(-0.1)))
    assert abs(share_of_class(plain) - expected) < 5 * np.sqrt(0.25 / 4000)
    only = float(LINE.component(CLASS).cdf(np.array(-0.1)))
    assert abs(share_of_class(guidance.classifier(plain, tilt, 1.0)) - only) < 0.01
    assert abs(share_of_class(guidance.classifier_free(LINE.component(CLASS).denoiser(process), plain, 1.0)) - only) < 0.01
    assert share_of_class(guidance.classifier_free(LINE.component(CLASS).denoiser(process), plain, 0.5)) > expected + 0.1


# Thresholds, rescaling, intervals -------------------------------------------------------------------------------------


def fixed(process, x0, raw_variance=None):
    """A denoiser that predicts x0 whatever it sees."""

    def function(x_t, t):
        denoised = process.with_x0(Denoised(x_t, x_t, raw_variance), jnp.asarray(x0), x_t, t)
        return denoised

    return Denoiser(function, process)


IMAGES = hnp.arrays(np.float32, (3, 4, 4, 2), elements=st.floats(-4, 4, width=32))


@given(IMAGES, st.floats(50, 100))
def test_dynamic_threshold_is_numpys_percentile(images, percentile):
    process = PROCESSES["vp_sde"]
    x_t, t = jnp.ones((3, 4, 4, 2)), jnp.array([0.2, 0.5, 0.9])
    found = guidance.dynamic_threshold(fixed(process, images), percentile)(x_t, t)
    for image, clipped in zip(images, np.asarray(found.x0), strict=True):
        limit = max(1.0, np.percentile(np.abs(image), percentile))
        np.testing.assert_allclose(clipped, np.clip(image, -limit, limit) / limit, atol=1e-5)
    alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, x_t, atol=1e-4)


@given(IMAGES)
def test_static_threshold_clips_and_stays_consistent(images):
    process = PROCESSES["edm"]
    x_t, t = jnp.ones((3, 4, 4, 2)), jnp.array([0.2, 0.5, 0.9])
    found = guidance.static_threshold(fixed(process, images))(x_t, t)
    np.testing.assert_allclose(found.x0, np.clip(images, -1, 1), atol=1e-30)  # subnormal numbers are flushed to zero
    sigma = process.alpha_sigma(t)[1][:, None, None, None]
    np.testing.assert_allclose(found.x0 + sigma * found.eps, x_t, atol=1e-4)


@pytest.mark.parametrize("threshold", [guidance.static_threshold, guidance.dynamic_threshold])
def test_thresholds_follow_the_range_of_the_data(threshold):
    """Data 3 x + 5 are thresholded as x are."""
    process, images, (x_t, t) = PROCESSES["edm"], images_of(0, 2.0), (jnp.ones((3, 4, 4, 2)), jnp.full(3, 0.5))
    expected = threshold(fixed(process, images))(x_t, t).x0
    found = threshold(fixed(process, 3 * images + 5), data_range=(2.0, 8.0))(x_t, t)
    np.testing.assert_allclose(found.x0, 3 * expected + 5, atol=1e-5)


def images_of(seed, scale=1.0):
    return scale * np.random.default_rng(seed).normal(0.3, 1.0, (3, 4, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_blends_standard_deviations_per_sample(phi):
    process = PROCESSES["straight_line"]
    guided, plain = images_of(0, 3.0) * np.array([1, 2, 3], np.float32)[:, None, None, None], images_of(1)
    x_t, t = jnp.ones((3, 4, 4, 2)), jnp.full(3, 0.5)
    found = np.asarray(guidance.rescale(fixed(process, guided), fixed(process, plain), phi, of="x0")(x_t, t).x0)
    for one, strong, weak in zip(found, guided, plain, strict=True):
        np.testing.assert_allclose(one.std(), phi * weak.std() + (1 - phi) * strong.std(), rtol=1e-5)
        np.testing.assert_allclose(one / one.std(), strong / strong.std(), rtol=1e-4)  # only the scale changes


def test_rescale_bears_a_constant_prediction():
    process, zeros = PROCESSES["vp_sde"], np.zeros((2, 4, 4, 1), np.float32)
    x_t, t = jnp.ones((2, 4, 4, 1)), jnp.full(2, 0.5)
    for of in guidance.RESCALED:
        np.testing.assert_allclose(
            guidance.rescale(fixed(process, zeros), fixed(process, zeros), of=of)(x_t, t).x0, 0.0, atol=1e-6
        )


@pytest.mark.parametrize(("prediction", "apart"), [("eps", 0.15), ("v", 0.05), ("x0", 0.0)])
@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescale_is_of_the_networks_output(prediction, apart, phi):
    """As published, by its formula; the other form, of x0, is another picture, unless x0 is the output."""
    process, t = Process("scaled_linear", prediction=prediction), jnp.full(3, 0.6)
    x_t, cond, uncond = jnp.asarray(images_of(0)), images_of(1), images_of(2)
    bind = lambda output: process.bind(lambda params, x, noise, c: jnp.asarray(output), {})  # noqa: E731
    guided = guidance.classifier_free(bind(cond), bind(uncond), 7.5)
    found = guidance.rescale(guided, bind(cond), phi)(x_t, t)
    mixed, axes = uncond + 7.5 * (cond - uncond), (1, 2, 3)
    rescaled = mixed * (cond.std(axes, keepdims=True) / mixed.std(axes, keepdims=True))
    wanted = bind(phi * rescaled + (1 - phi) * mixed)(x_t, t)
    np.testing.assert_allclose(found.x0, wanted.x0, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(found.eps, wanted.eps, rtol=1e-4, atol=2e-5)
    of_x0 = guidance.rescale(guided, bind(cond), phi, of="x0")(x_t, t).x0
    far = float(jnp.abs(of_x0 - found.x0).max() / jnp.abs(found.x0).max())
    assert far >= apart and (apart or far < 1e-5), far


def test_interval_is_in_units_of_the_noise_level():
    """Open below, closed above; every sample by its own level."""
    process = PROCESSES["edm"]
    levels = np.array([0.1, 0.2, 0.5, 1.0, 1.5, 80.0])
    t = jnp.asarray(process.schedule.inverse(-2 * np.log(levels)), jnp.float32)
    ones = np.ones((6, 2), np.float32)
    guided = guidance.interval(fixed(process, 2 * ones), fixed(process, ones), 0.15, 1.2)
    found = guided(jnp.ones((6, 2)), t)
    np.testing.assert_array_equal(found.x0[:, 0], [1, 2, 2, 2, 1, 1])
    sigma = process.alpha_sigma(t)[1][:, None]
    np.testing.assert_allclose(found.x0 + sigma * found.eps, 1.0, atol=1e-4)


def test_interval_reaches_zero_snr():
    process = PROCESSES["straight_line"]
    ones, t = np.ones((2, 2), np.float32), jnp.array([1.0, 0.5])
    for high, expected in ((np.inf, [2, 2]), (5.0, [1, 2])):
        found = guidance.interval(fixed(process, 2 * ones), fixed(process, ones), 0.0, high)(jnp.ones((2, 2)), t)
        np.testing.assert_array_equal(found.x0[:, 0], expected)


def test_all_guidance_keeps_the_variance_channels():
    process, raw = PROCESSES["vp_sde"], jnp.full((3, 4, 4, 2), 0.25)
    cond, uncond = fixed(process, images_of(0), raw), fixed(process, images_of(1), -raw)
    log_prob = lambda x, t: -jnp.square(x).sum((1, 2, 3))  # noqa: E731
    mixed = guidance.classifier_free(cond, uncond, 3.0)
    for denoiser in (
        mixed,
        guidance.rescale(mixed, cond),
        guidance.interval(mixed, cond, 0.1, 1.0),
        guidance.static_threshold(mixed),
        guidance.dynamic_threshold(mixed),
        guidance.classifier(mixed, log_prob, 1.0),
    ):
        np.testing.assert_array_equal(denoiser(jnp.ones((3, 4, 4, 2)), jnp.full(3, 0.5)).raw_variance, raw)


@pytest.mark.slow
def test_ancestral_steps_use_what_guidance_made():
    """A mean that the network predicted, and a classifier's gradient, belong to the x0 before guidance: neither outlives it."""
    process, x, s, t = Process({"name": "linear", "num_steps": 50}, "mu"), jnp.array([[0.3, -1.2]]), 0.48, jnp.array([0.5])
    plain, weak = (process.bind(lambda params, x, noise, cond, k=k: k * x, {}) for k in (0.9, 0.5))
    solver, silence = solvers.ddpm(), lambda name: jnp.zeros_like(x)
    step = lambda denoiser: solver.step(denoiser, x, solver.init(x, 1), t, jnp.float32(s), silence)[0]  # noqa: E731
    tilted = guidance.classifier(plain, lambda x, t: -jnp.square(x).sum(-1), 2.0)
    variance = np.exp(process.reverse_log_variance(plain(x, t), s, t))
    np.testing.assert_allclose(step(tilted), 0.9 * x - variance * 4 * x, rtol=1e-3)
    for guided in (
        guidance.classifier_free(tilted, weak, 3.0),
        guidance.interval(tilted, weak, 0.0, 1e-3),
        guidance.rescale(tilted, weak),
        guidance.dynamic_threshold(tilted),
    ):
        np.testing.assert_allclose(step(guided), process.posterior(guided(x, t).x0, x, s, t)[0], rtol=1e-3)


def test_composed_guidance_evaluates_each_network_once():
    """The compiled program shares the conditional evaluation among mixing, rescaling and the interval."""
    process, weights = PROCESSES["vp_sde"], jnp.ones((64, 64))

    def network(params, x, noise, cond):
        return jnp.tanh(x @ weights + cond) @ weights

    bind = lambda cond: process.bind(network, {}, cond)  # noqa: E731

    def flops(make):
        run = jax.jit(lambda x, a, b: make(bind(a), bind(b))(x, jnp.full(32, 0.5)).x0)
        return run.lower(jnp.ones((32, 64)), 1.0, 2.0).compile().cost_analysis()["flops"]

    def composed(cond, uncond):
        mixed = guidance.classifier_free(cond, uncond, 3.0)
        return guidance.interval(guidance.rescale(mixed, cond), cond, 0.1, 1.0)

    plain = flops(lambda cond, uncond: cond)
    assert flops(composed) < 2.2 * plain


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: guidance.rescale(d, d, 1.5), "phi"),
        (lambda d: guidance.rescale(d, d, of="output of x0"), "unknown|did you mean|output"),
        (lambda d: guidance.interval(d, d, 1.0, 0.5), "low < high"),
        (lambda d: guidance.interval(d, d, -1.0, 0.5), "low < high"),
        (lambda d: guidance.dynamic_threshold(d, 0.995), r"percentile must be a number in \[1, 100\], got 0.995"),
        (lambda d: guidance.classifier_free(d, d, float("nan")), "scale must be a number, got nan"),
        (lambda d: guidance.autoguidance(d, d, float("inf")), "scale must be a number, got inf"),
        (lambda d: guidance.dynamic_threshold(d, 101.0), "percentile"),
        (lambda d: guidance.dynamic_threshold(d, data_range=(1.0, -1.0)), "low < high"),
        (lambda d: guidance.static_threshold(d, (1.0, -1.0)), "low < high"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ConfigError, match=message):
        make(BIMODAL.denoiser(PROCESSES["vp_sde"]))
