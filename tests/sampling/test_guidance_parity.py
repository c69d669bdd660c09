"""Guidance against diffusers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import Process
from diffusion_jax.sampling import guidance
from tests.peers import peer


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_is_diffusers(prediction, phi):
    """`rescale_noise_cfg` of the network's output, whatever it predicts."""
    pipelines = peer("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    torch = peer("torch")
    process, t = Process("scaled_linear", prediction=prediction), jnp.full(2, 0.6)
    x_t, cond, uncond = np.random.default_rng(0).normal(0.3, 1, (3, 2, 4, 4, 3)).astype(np.float32)
    bind = lambda output: process.bind(lambda params, x, noise, c: jnp.asarray(output), {})  # noqa: E731
    mixed = uncond + 7.5 * (cond - uncond)
    published = pipelines.rescale_noise_cfg(torch.tensor(mixed), torch.tensor(cond), guidance_rescale=phi).numpy()
    found = guidance.rescale(guidance.classifier_free(bind(cond), bind(uncond), 7.5), bind(cond), phi)(jnp.asarray(x_t), t)
    np.testing.assert_allclose(process.target(found.x0, found.eps, t), published, rtol=1e-4, atol=2e-5)
