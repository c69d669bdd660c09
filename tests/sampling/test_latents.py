"""Encoding, reconstruction and interpolation against geometry and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.sampling import grids, latents, solvers
from tests.oracles import BIMODAL, QUICK, Mixture


def test_slerp_turns_in_the_plane_of_the_two():
    """At share a the result is at a times the angle from the first, at the common length, one turn for each example."""
    angles = np.array([0.3, 1.2, 2.5])
    first = 2 * np.stack([np.ones(3), np.zeros(3)], -1).reshape(3, 1, 2)
    second = 2 * np.stack([np.cos(angles), np.sin(angles)], -1).reshape(3, 1, 2)
    shares = np.array([0.0, 0.25, 0.7])
    expected = 2 * np.stack([np.cos(shares * angles), np.sin(shares * angles)], -1).reshape(3, 1, 2)
    found = latents.slerp(jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32), jnp.asarray(shares))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(latents.slerp(jnp.asarray(first), jnp.asarray(second), 1.0), second, atol=1e-6)


def test_slerp_of_noise_is_noise_and_lerp_is_not():
    first, second = jax.random.normal(jax.random.key(0), (2, 8, 64, 64, 3))
    middle = latents.slerp(first, second, 0.5)
    assert abs(float(middle.std()) - 1) < 0.01
    assert abs(float(latents.lerp(first, second, 0.5).std()) - 0.5**0.5) < 0.01


@pytest.mark.parametrize("sign", [1.0, 2.0])
def test_slerp_of_parallel_vectors_is_the_chord(sign):
    x = jax.random.normal(jax.random.key(0), (2, 5))
    np.testing.assert_allclose(latents.slerp(x, sign * x, 0.3), (0.7 + 0.3 * sign) * x, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", *(pytest.param(name, marks=pytest.mark.slow) for name in ("x0", "v"))])
def test_reconstruction_error_falls_with_steps(prediction):
    process = Process("linear", prediction)
    denoiser = BIMODAL.denoiser(process)
    x0 = jnp.asarray(BIMODAL.marginal(process, 0.0, 128), jnp.float32)
    errors = []
    for count in (10, 40, 160):
        back, noise = jax.jit(lambda x0, n=count: latents.reconstruct(denoiser, grids.leading(n), x0), compiler_options=QUICK)(
            x0
        )
        errors.append(float(jnp.abs(back - x0).mean()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2], errors
    assert abs(float(jnp.square(noise).mean()) - 1) < 0.35


def test_interpolated_gaussians_move_along_the_closed_form():
    """For N(m, v) data, DDIM is affine: noise z becomes m + sqrt(v) z, so the path of images is that of noises."""
    process, mean, std = Process("linear"), np.array([0.2, -0.1]), np.array([0.5, 0.3])
    denoiser = Mixture.gaussian(mean, std**2).denoiser(process)
    first, second = jnp.asarray([[1.0, 0.5]]), jnp.asarray([[-0.4, 1.1]])
    shares = [0.0, 0.3, 1.0]
    found = latents.interpolate(denoiser, grids.uniform(400), first, second, shares)
    for share, image in zip(shares, found, strict=True):
        np.testing.assert_allclose(image, mean + std * latents.slerp(first, second, share), atol=1.5e-2)


def test_diffused_interpolation_keeps_the_images_at_an_early_start_and_loses_them_at_a_late_one():
    process = Process("linear", variance="fixed_small")
    data = Mixture.gaussian([0.0], [0.3**2])
    first, second = jnp.full((4000, 1), 0.3), jnp.full((4000, 1), -0.3)

    def run(start):
        walk = lambda key: latents.interpolate_diffused(  # noqa: E731
            data.denoiser(process), solvers.ddpm(), grids.uniform(50), key, first, second, [0.0, 0.5, 1.0], start
        )
        return np.asarray(jax.jit(walk, compiler_options=QUICK)(jax.random.key(0)))[..., 0]

    early, late = run(0.05), run(1.0)
    # x_t is mixed; a Gaussian's posterior mean of x0 given it is linear, so means lie on a line, shrunk alike.
    alpha, sigma = (float(v) for v in process.schedule.alpha_sigma(np.float64(0.05)))
    kept = alpha**2 * 0.09 / (alpha**2 * 0.09 + sigma**2)
    np.testing.assert_allclose(early.mean(1), kept * np.array([0.3, 0.0, -0.3]), atol=0.03)
    np.testing.assert_allclose(late.mean(1), 0.0, atol=0.03)
    np.testing.assert_allclose(late[0].std(), 0.3, rtol=0.25)  # the smaller variance, in few steps, falls short


def test_diffused_interpolation_noises_each_image_apart_and_mixes_in_a_line():
    """Black images: of two independent noises half and half, 1 / sqrt(2) is left; one step makes alpha v / (...) of it."""
    process, variance = Process("linear", variance="fixed_small"), 0.25
    denoiser, black = Mixture.gaussian(np.zeros(200), variance).denoiser(process), jnp.zeros((40, 200))
    found = latents.interpolate_diffused(
        denoiser, solvers.ddim(), np.array([1.0, 0.5, 0.0]), jax.random.key(0), black, black, [0.0, 0.5, 1.0], 0.5
    )
    alpha, sigma = (float(v) for v in process.schedule.alpha_sigma(np.float64(0.5)))
    whole = alpha * variance / (alpha**2 * variance + sigma**2) * sigma
    np.testing.assert_allclose(np.asarray(found).std((1, 2)), whole * np.array([1, 0.5**0.5, 1]), rtol=0.03)
    assert abs(np.corrcoef(found[0].ravel(), found[2].ravel())[0, 1]) < 0.05


def test_mistakes():
    process = Process("linear")
    with pytest.raises(ConfigError, match="one shape"):
        latents.slerp(jnp.zeros((1, 2)), jnp.zeros((1, 3)), 0.5)
    with pytest.raises(ConfigError, match="one shape"):
        latents.lerp(jnp.zeros((1, 1)), jnp.zeros((1, 3)), 0.5)
    denoiser, x0 = BIMODAL.denoiser(process), jnp.zeros((1, 2))
    times = np.array([1.0, 0.2, 0.0])
    for start in (0.0, 0.1, 1.5):
        with pytest.raises(ConfigError, match="start must lie"):
            latents.interpolate_diffused(denoiser, solvers.ddpm(), times, jax.random.key(0), x0, x0, [0.5], start)
