"""Steps of the probability-flow ODE between times of each example's own: what distillation asks of a teacher.

A solver walks a batch along one time grid; in training every example stands at another time.
"""

from __future__ import annotations

import jax

from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoised, Denoiser, PerExample, expand


def _euler(process: Process, denoised: Denoised, s: PerExample) -> jax.Array:
    alpha, sigma = (expand(value, denoised.x0) for value in process.alpha_sigma(s))
    return alpha * denoised.x0 + sigma * denoised.eps


def ddim_step(denoise: Denoiser, x_t: Data, t: PerExample, s: PerExample) -> jax.Array:
    """x_s by one step of DDIM at eta = 0, which is Euler's in sigma / alpha.

    Args:
      x_t: [B, ...] at times t [B].
      s: [B], s < t; where s is 0 the result is the predicted x0.

    Source: Song et al. 2021, equation 13 (arXiv 2010.02502).
    """
    return _euler(denoise.process, denoise(x_t, t), s)


def heun_step(denoise: Denoiser, x_t: Data, t: PerExample, s: PerExample) -> jax.Array:
    """x_s by one step of Heun's method in sigma / alpha, of order 2: two evaluations.

    Args:
      x_t: [B, ...] at times t [B].
      s: [B], 0 < s < t.

    Source: Karras et al. 2022, algorithm 1 (arXiv 2206.00364).
    """
    process = denoise.process
    first = denoise(x_t, t)
    predicted = _euler(process, first, s)
    second = denoise(predicted, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    # With the alpha of t: the same to second order, and finite from zero SNR.
    half = expand(0.5 * (alpha_t / alpha_s * sigma_s - sigma_t), x_t)
    return predicted + half * (second.eps - first.eps)
