"""Editing against what is exact: Gaussian posteriors, conditionals and flows, published counts, another library's kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Denoiser, Process
from diffusion_jax.sampling import grids, sample, solvers
from diffusion_jax.sampling.editing import forward, ilvr, low_pass, repaint, sdedit, visits
from tests.oracles import CORRELATED, GAUSSIAN, Mixture

PROCESSES = {
    "vp": Process("cosine_continuous", "v"),
    "chain": Process({"name": "linear", "num_steps": 200}, "eps"),
    "ve": Process("edm", "edm"),
    "line": Process("straight_line", "velocity"),
}
MEAN, VARIANCE = np.array([0.5, -0.3]), np.array([0.09, 0.36])


def white(process: Process, variance: float = 0.25) -> Denoiser:
    """The exact denoiser of images of independent pixels with mean 0."""

    def function(x, t):
        alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
        total = alpha**2 * variance + sigma**2
        return Denoised(alpha * variance / total * x, sigma / total * x)

    return Denoiser(function, process)


def photograph(size: int) -> np.ndarray:
    """A smooth picture with edges, float [1, size, size, 3]."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.standard_normal((size, size, 3)), (3, 3, 0), mode="wrap")
    return (np.tanh(4 * smooth) + 0.3 * smooth)[None].astype(np.float32)


# SDEdit ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_sdedit_with_the_flow_is_the_exact_flow_of_the_noised_guide(name):
    process = PROCESSES[name]
    t = 0.4
    guide = jnp.tile(jnp.array([[0.9, 0.8]], jnp.float32), (2000, 1))
    out = np.asarray(
        sdedit(GAUSSIAN.denoiser(process), solvers.ddim(), grids.trailing(100), jax.random.key(0), guide, t), float
    )
    alpha, sigma = (float(value) for value in process.schedule.alpha_sigma(np.float64(t)))
    ratio = np.sqrt(VARIANCE / (alpha**2 * VARIANCE + sigma**2))
    # x0 = mean + ratio (alpha (guide - mean) + sigma n): Gaussian in the noise n
    expected = MEAN + ratio * alpha * (np.array([0.9, 0.8]) - MEAN)
    np.testing.assert_allclose(out.mean(0), expected, atol=4 * np.max(ratio * sigma) / np.sqrt(2000) + 0.01)
    np.testing.assert_allclose(out.std(0), ratio * sigma, rtol=0.08)


def test_sdedit_that_samples_draws_from_the_posterior_given_the_noised_guide():
    """x0 ~ p(x0 | x_t), with x_t ~ q(x_t | guide): mean and variance in closed form."""
    process, t = PROCESSES["vp"], 0.5
    guide = jnp.tile(jnp.array([[0.9, 0.8]], jnp.float32), (4000, 1))
    draw = jax.jit(lambda key: sdedit(GAUSSIAN.denoiser(process), solvers.ddpm(), grids.trailing(400), key, guide, t))
    out = np.asarray(draw(jax.random.key(0)), float)
    alpha, sigma = (float(value) for value in process.schedule.alpha_sigma(np.float64(t)))
    total = alpha**2 * VARIANCE + sigma**2
    np.testing.assert_allclose(out.mean(0), MEAN + alpha**2 * VARIANCE / total * (np.array([0.9, 0.8]) - MEAN), atol=0.03)
    spread = VARIANCE * sigma**2 / total + (alpha * VARIANCE / total * sigma) ** 2
    np.testing.assert_allclose(out.var(0), spread, rtol=0.1)


def test_sdedit_at_its_ends():
    """Strength 0 returns the guide; at 1, where a straight line has no signal left, two guides give one image."""
    guides = [jnp.full((3, 2), value) for value in (0.9, -0.9)]
    denoise, grid = GAUSSIAN.denoiser(PROCESSES["line"]), grids.uniform(6)
    run = lambda guide, strength: sdedit(denoise, solvers.ddim(), grid, jax.random.key(0), guide, strength)  # noqa: E731
    assert (run(guides[0], 0.0) == guides[0]).all()
    np.testing.assert_array_equal(run(guides[0], 1.0), run(guides[1], 1.0))
    assert jnp.abs(run(guides[0], 0.5) - run(guides[1], 0.5)).min() > 0.1
    chain = GAUSSIAN.denoiser(PROCESSES["chain"])  # 0.002 is nearer to data than to the first of 200 steps
    assert (sdedit(chain, solvers.ddim(), grid, jax.random.key(0), guides[0], 0.002) == guides[0]).all()


def test_sdedit_keeps_what_the_mask_keeps_and_repeats_move_on():
    denoise, grid = white(PROCESSES["vp"]), grids.trailing(10)
    guide, mask = jnp.asarray(photograph(8)).repeat(2, 0), np.ones((8, 8, 1))
    mask[2:5, 1:6] = 0
    run = lambda **more: sdedit(denoise, solvers.ddpm(), grid, jax.random.key(1), guide, 0.4, **more)  # noqa: E731
    once, twice, masked = run(), run(repeats=2), run(mask=mask)
    kept = np.broadcast_to(mask == 0, guide.shape)
    assert (np.asarray(masked)[kept] == np.asarray(guide)[kept]).all()
    assert (np.abs(np.asarray(masked) - guide)[~kept] > 1e-4).mean() > 0.99
    correlation = lambda x: np.corrcoef(np.ravel(x), np.ravel(guide))[0, 1]  # noqa: E731
    assert 0.1 < correlation(twice) < correlation(once) - 0.1


@pytest.mark.parametrize("method", ["sdedit", "ilvr", "repaint"])
def test_image_i_is_the_same_whatever_is_beside_it(method):
    denoise, grid, images = white(PROCESSES["vp"]), grids.trailing(4), jnp.asarray(photograph(8)).repeat(3, 0)

    def run(rows):
        rows = jnp.asarray(rows)
        key, given, at = jax.random.key(3), images[: len(rows)], {"indices": rows}
        if method == "sdedit":
            return sdedit(denoise, solvers.ddpm(), grid, key, given, 0.7, **at)
        if method == "ilvr":
            return ilvr(denoise, solvers.ddpm(), grid, key, given, 2, **at)
        return repaint(denoise, solvers.ddpm(), grid, key, given, jnp.eye(8)[..., None], 2, 2, **at)

    together = run([4, 7, 5])
    np.testing.assert_allclose(run([5]), together[2:], atol=1e-6)
    assert jnp.abs(together[0] - together[1]).max() > 0.1


# ILVR ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4])
def test_the_low_pass_is_pils_bicubic_down_and_up(factor):
    image = photograph(16)[0, :, :, 0]
    small = Image.fromarray(image).resize((16 // factor,) * 2, Image.Resampling.BICUBIC)
    expected = np.asarray(small.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(low_pass(jnp.asarray(image[None, ..., None]), factor)[0, ..., 0], expected, atol=1e-5)


def test_the_low_pass_is_nearly_a_projection_and_keeps_means():
    image = jnp.asarray(photograph(32))
    for factor in (2, 4, 8):
        once = low_pass(image, factor)
        again = low_pass(once, factor)
        assert jnp.linalg.norm(again - once) < 0.2 * jnp.linalg.norm(once)  # 0.02, 0.08, 0.14
        np.testing.assert_allclose(low_pass(jnp.full((1, 32, 32, 1), 0.3), factor), 0.3, atol=1e-6)
    assert (low_pass(image, 1) == image).all()


@pytest.mark.parametrize("factor", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_ilvr_has_the_references_low_frequencies_and_its_own_high_ones(factor):
    reference, denoise = jnp.asarray(photograph(16)).repeat(4, 0), white(PROCESSES["vp"])
    run = lambda stop: ilvr(denoise, solvers.ddpm(), grids.trailing(20), jax.random.key(0), reference, factor, stop)  # noqa: E731
    away = lambda x: float(jnp.linalg.norm(low_pass(x - reference, factor)) / jnp.linalg.norm(low_pass(reference, factor)))  # noqa: E731
    free = sample(denoise, solvers.ddpm(), grids.trailing(20), jax.random.key(0), reference.shape)
    held, released = run(0.0), run(0.5)
    assert away(held) < 0.1 < away(released) < away(free)
    above = np.asarray(held - low_pass(held, factor))
    assert abs(np.corrcoef(above[0].ravel(), np.asarray(reference - low_pass(reference, factor))[0].ravel())[0, 1]) < 0.2
    assert np.std(above[0] - above[1]) > 0.3  # two images of one reference differ


def test_references_that_share_low_frequencies_are_interchangeable():
    """The chain sees nothing of a reference but phi_N of it."""
    denoise, first = white(PROCESSES["vp"]), jnp.asarray(photograph(16))
    detail = jax.random.normal(jax.random.key(5), first.shape)
    matrix = np.asarray(low_pass(jnp.eye(16)[:, :, None, None].repeat(16, 2), 4))[:, :, 0, 0].T  # along the height
    null = np.eye(16) - np.linalg.pinv(matrix.astype(float), 1e-5) @ matrix
    second = first + jnp.einsum("ij,bjwc->biwc", null, detail)
    np.testing.assert_allclose(low_pass(second, 4), low_pass(first, 4), atol=1e-5)
    drawn = [ilvr(denoise, solvers.ddpm(), grids.trailing(10), jax.random.key(0), each, 4) for each in (first, second)]
    np.testing.assert_allclose(*drawn, atol=1e-4)


# RePaint ---------------------------------------------------------------------------------------------------------------


def test_the_published_walk():
    """250 steps, j = r = 10: 4,571 entries, 2,410 evaluations, 2,160 returns, the first of them from 230 to 240."""
    order = visits(250)
    moves = np.diff(order)
    assert len(order) == 4571 and (moves == -1).sum() == 2410 and (moves == 1).sum() == 2160
    assert order[:20] == list(range(249, 229, -1)) and order[20:31] == [*range(231, 241), 239] and order[-1] == -1
    starts = [a for a, b, before in zip(order[1:], order[2:], order, strict=False) if b > a and before > a]
    assert sorted(set(starts)) == list(range(0, 231, 10)) and all(starts.count(place) == 9 for place in set(starts))
    assert visits(50, 10, 1) == list(range(49, -2, -1)) and visits(3, 5, 4) == [2, 1, 0, -1]


def test_a_return_in_time_is_the_forward_process():
    """From q(x_s | x0) it leads to q(x_t | x0), whatever the family."""
    for process in PROCESSES.values():
        s, t = jnp.float32(0.3), jnp.float32(0.7)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = process.alpha_sigma(s), process.alpha_sigma(t)
        mean = forward(process, alpha_s * jnp.ones(1), s, t, jnp.zeros(1))
        np.testing.assert_allclose(mean, alpha_t, rtol=1e-5)
        zero, one = jnp.zeros(1), jnp.ones(1)
        coefficient = [float(forward(process, x, s, t, n)[0]) for x, n in ((sigma_s * one, zero), (zero, one))]
        np.testing.assert_allclose(np.hypot(*coefficient), sigma_t, rtol=1e-5)


def correlated(angle_data: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the correlated Gaussian."""
    axes = angle_data.rotation
    return angle_data.means[0] @ axes.T, axes @ np.diag(angle_data.variances[0]) @ axes.T


def test_resampling_comes_nearer_to_the_true_conditional_than_plain_replacement():
    """The second of two correlated numbers, given the first, which lies two standard deviations out."""
    process = PROCESSES["vp"]
    mean, covariance = correlated(CORRELATED)
    known = mean[0] + 2 * np.sqrt(covariance[0, 0])
    expected = mean[1] + covariance[1, 0] / covariance[0, 0] * (known - mean[0])
    spread = np.sqrt(covariance[1, 1] - covariance[1, 0] ** 2 / covariance[0, 0])
    given = jnp.tile(jnp.array([[known, jnp.nan]], jnp.float32), (2000, 1))

    def draw(resamples: int) -> np.ndarray:
        run = lambda key: repaint(  # noqa: E731
            CORRELATED.denoiser(process), solvers.ddpm(), grids.trailing(50), key, given, [0.0, 1.0], 5, resamples
        )
        out = np.asarray(jax.jit(run)(jax.random.key(0)), np.float64)
        assert (out[:, 0] == np.float32(known)).all()  # exactly
        return out[:, 1]

    plain, resampled = draw(1), draw(10)
    # The Wasserstein distance of two Gaussians, in standard deviations of the conditional.
    distance = lambda x: np.hypot(x.mean() - expected, x.std() - spread) / spread  # noqa: E731
    assert distance(plain) > 0.5 and distance(resampled) < 0.5 * distance(plain)
    assert abs(resampled.std() / spread - 1) < 0.15


@pytest.mark.parametrize("solver", [solvers.ddpm(), solvers.ddim(), solvers.dpmpp_2m()], ids=["ddpm", "ddim", "dpmpp_2m"])
def test_known_pixels_are_returned_exactly_by_any_solver(solver):
    image, mask = jnp.asarray(photograph(8)), np.random.default_rng(0).integers(0, 2, (1, 8, 8, 1))
    out = repaint(white(PROCESSES["vp"]), solver, grids.trailing(8), jax.random.key(0), image, mask, 2, 2)
    kept = np.broadcast_to(mask == 0, image.shape)
    assert (np.asarray(out)[kept] == np.asarray(image)[kept]).all()
    assert np.isfinite(out).all() and (np.asarray(out)[~kept] != np.asarray(image)[~kept]).all()


def test_bad_input():
    denoise, grid, key, image = white(PROCESSES["vp"]), grids.trailing(4), jax.random.key(0), jnp.zeros((2, 8, 8, 3))
    for call, message in [
        (lambda: sdedit(denoise, solvers.ddim(), grid, key, image, 1.2), "strength must lie in"),
        (lambda: sdedit(denoise, solvers.ddim(), grid, key, image, 0.5, repeats=0), "repeats must be at least 1"),
        (lambda: sdedit(denoise, solvers.ddim(), grid, key, image, 0.5, mask=np.ones((4, 8, 1))), "does not fit images"),
        (lambda: ilvr(denoise, solvers.ddpm(), grid, key, image, 3), "factor 3 must divide the images' sides, 8x8"),
        (lambda: ilvr(denoise, solvers.ddpm(), grid, key, image, 2, 1.0), "stop must lie in"),
        (lambda: repaint(denoise, solvers.ddpm(), grid, key, image, np.ones((1, 1, 1))), "height and width must be"),
        (lambda: repaint(denoise, solvers.ddpm(), grid, key, image, np.ones((8, 8, 1)), 0), "must be at least 1"),
        (lambda: repaint(denoise, solvers.ddpm(), grid, key, image, np.ones((8, 8, 1)), indices=[1]), "2 samples need indices"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            call()
