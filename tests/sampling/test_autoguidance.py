"""Guidance by a second model, on Gaussians whose denoisers are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Denoiser, Process
from diffusion_jax.sampling import grids, guidance, sample, solvers


def gaussian(process, mean, std):
    """The exact denoiser of N(mean, std^2)."""

    def function(x_t, t):
        alpha, sigma = (a[:, None] for a in process.alpha_sigma(t))
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)
        return Denoised(x0, (x_t - alpha * x0) / sigma)

    return Denoiser(function, process)


def test_it_is_linear_in_the_scale():
    process = Process("cosine_continuous", prediction="v")
    main, reference = gaussian(process, 0.5, 0.3), gaussian(process, -0.5, 0.6)
    x, t = jnp.linspace(-1, 1, 6).reshape(3, 2), jnp.array([0.2, 0.5, 0.9])
    m, r = main(x, t), reference(x, t)
    for scale in (0.0, 1.0, 2.1):
        guided = guidance.autoguidance(main, reference, scale)(x, t)
        np.testing.assert_allclose(guided.x0, r.x0 + scale * (m.x0 - r.x0), rtol=1e-5)
        np.testing.assert_allclose(guided.eps, r.eps + scale * (m.eps - r.eps), rtol=1e-5, atol=1e-6)


def test_a_broader_reference_sharpens():
    """Away from the same Gaussian seen too broadly: samples keep their mean and lose spread, more with a larger scale."""
    process = Process("cosine_continuous", prediction="v")
    main, reference = gaussian(process, 0.5, 0.3), gaussian(process, 0.5, 0.45)
    spread = []
    for scale in (1.0, 1.5, 2.0):
        denoise = guidance.autoguidance(main, reference, scale)
        x = sample(denoise, solvers.heun(), grids.uniform(40), jax.random.key(0), shape=(2000, 1))
        assert float(x.mean()) == pytest.approx(0.5, abs=0.03)
        spread.append(float(x.std()))
    assert spread[0] == pytest.approx(0.3, rel=0.05) and spread[0] > 1.1 * spread[1] > 1.2 * spread[2]


def test_predictions_may_differ_but_not_the_noise():
    ours = gaussian(Process("cosine_continuous", prediction="v"), 0.0, 1.0)
    guidance.autoguidance(ours, gaussian(Process("cosine_continuous", prediction="eps"), 0.0, 1.0), 2.0)
    for schedule in ("edm", {"name": "cosine_continuous", "shift": 1.0}):
        with pytest.raises(ConfigError, match="need the same schedule"):
            guidance.autoguidance(ours, gaussian(Process(schedule, prediction="v"), 0.0, 1.0), 2.0)
    scaled = [gaussian(Process({"name": "iddpm_levels", "family": family}), 0.0, 1.0) for family in ("ve", "vp")]
    with pytest.raises(ConfigError, match="need the same schedule"):  # the same log-SNRs, but other x_t
        guidance.autoguidance(*scaled, 2.0)
