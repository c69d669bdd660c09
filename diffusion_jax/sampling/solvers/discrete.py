"""Ancestral sampling of categories: draws of the reverse step at the predicted probabilities of x0."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.discrete import Categorical
from diffusion_jax.process.types import Denoiser
from diffusion_jax.registry import part
from diffusion_jax.sampling.solvers.base import Noise, Solver, stateless


@part("solver", "categorical")
def categorical() -> Solver:
    """Return the solver that draws each element of x_s from p(x_s | x_t), the sum of q(x_s | x_t, x0) p(x0 | x_t) over x0.

    For any pair of times s < t, of bits and categories; at s = 0 it is a draw of p(x0 | x_t). Under absorbing noise, each
    element is unmasked once and stays.

    Source: Austin et al. 2021, section 3 (arXiv 2107.03006); of bits, Sohl-Dickstein et al. 2015 (arXiv 1503.03585).
    """

    def check(process: Any, times: np.ndarray) -> None:
        if not isinstance(process, Categorical):
            raise ConfigError(
                f"solver 'categorical' draws the categories of a process 'binomial' or 'categorical', not of "
                f"{type(process).__name__}: use a solver of Gaussian noise, such as 'ddpm' or 'ddim'"
            )

    def step(denoiser: Denoiser, x: jax.Array, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[jax.Array, Any]:
        log_probs = denoiser.process.reverse(denoiser(x, t), x, s, t)
        # The largest of Gumbel noise: unlike a sum of probabilities, it never draws what is impossible.
        return jnp.argmax(log_probs + noise("step", jax.random.gumbel, log_probs.shape[1:]), axis=-1), state

    return Solver(stateless, step, check=check)
