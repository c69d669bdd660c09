"""Samplers of score SDEs: reverse diffusion, and a predictor with Langevin corrections.

Source: Song et al. 2021 (arXiv 2011.13456).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.process.types import Data, Denoiser, expand
from diffusion_jax.registry import build, part
from diffusion_jax.sampling.solvers.base import Noise, Solver, needs_signal, stateless
from diffusion_jax.values import Count, Positive


@part("solver", "reverse_diffusion")
def reverse_diffusion() -> Solver:
    """Step back as the process stepped forward: x_s = (2 - a) x_t + V score + sqrt(V) z, and the prediction at s = 0.

    The forward step from s to t is a x_s + sqrt(V) z, so a = alpha_t / alpha_s. Stochastic, N evaluations, for every
    Gaussian process (VP, VE, sub-VP) that has signal at its first time; the mean is `ddpm`'s to first order in the step.

    Source: Song et al. 2021, equation 46 of appendix E (arXiv 2011.13456).
    """

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, denoised = denoiser.process, denoiser(x, t)
        (alpha_t, sigma_t), (alpha_s, _) = process.alpha_sigma(t), process.alpha_sigma(s)
        variance = -jnp.expm1(-process.drop(s, t)) * sigma_t**2
        mean = (2 - alpha_t / alpha_s) * x - variance / sigma_t * denoised.eps
        return jnp.where(s > 0, mean + jnp.sqrt(variance) * noise("step"), denoised.x0), state

    return Solver(stateless, step, check=needs_signal("'reverse_diffusion'"))


@part("solver", "predictor_corrector")
def predictor_corrector(predictor: Any = "reverse_diffusion", snr: Positive = 0.16, corrections: Count = 1) -> Solver:
    """Correct x_t by Langevin's dynamics towards its own distribution, then step by another solver; stochastic.

    N (corrections + the predictor's) evaluations, on the processes that the predictor serves. As in published code the
    correction comes first, so that the last step, to data, is the predictor's.

    Args:
      predictor: a solver, its name or its configuration, such as "reverse_diffusion", "ddpm" (ancestral) or "ddim"; those
        without history are meant.
      snr: r of the step's size, the ratio of the norms of the step along the score and of its noise; see `langevin`.
        Published are 0.16 for exploding variance (CIFAR-10) and 0.01 to 0.16 elsewhere.
      corrections: in each step.

    Source: Song et al. 2021, algorithms 1, 4 and 5 (arXiv 2011.13456).
    """
    inner: Solver = build("solver", predictor)

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        alpha_t, alpha_s = (denoiser.process.alpha_sigma(time)[0] for time in (t, s))
        for number in range(corrections):
            x = langevin(denoiser, x, t, snr, noise(f"correction_{number}"), (alpha_t / alpha_s) ** 2).astype(x.dtype)
        return inner.step(denoiser, x, state, t, s, noise)

    return Solver(inner.init, step, evaluations=corrections + inner.evaluations, check=inner.check)


def langevin(denoiser: Denoiser, x: Data, t: jax.Array, snr: float, noise: jax.Array, scale: Any = 1.0) -> jax.Array:
    """Return x + e score + sqrt(2 e) z, a step of Langevin's dynamics at time t, with e = 2 scale (snr |z| / |score|)^2.

    Norms are of each sample, as the paper's algorithms have them; its code takes means over the batch, which would let one
    sample depend on the others.

    Args:
      noise: z, standard normal, shaped like x [B, ...].
      scale: 1 - beta of the chain's step where variance is preserved, 1 where it explodes.

    Source: Song et al. 2021, algorithms 4 and 5 (arXiv 2011.13456).
    """
    score = -denoiser(x, t).eps / expand(denoiser.process.alpha_sigma(t)[1], x)
    length = lambda values: jnp.sqrt(jnp.square(values).reshape(len(values), -1).sum(-1))  # noqa: E731
    size = 2 * scale * (snr * length(noise) / jnp.maximum(length(score), jnp.finfo(x.dtype).tiny)) ** 2
    size = expand(size, x)
    return x + size * score + jnp.sqrt(2 * size) * noise
