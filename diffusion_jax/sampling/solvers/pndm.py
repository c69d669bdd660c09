"""PNDM: Adams-Bashforth's weights on the predicted noise, moved by DDIM's step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Corruption, Data, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver, needs_signal

WARM_UPS = ("linear", "runge_kutta")
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _transfer(process: Process, x: Data, eps: Data, t: jax.Array, s: jax.Array) -> Data:
    """x_s where eps is the noise in x_t (equation 11)."""
    (alpha_t, sigma_t), (alpha, sigma) = process.alpha_sigma(t), process.alpha_sigma(s)
    return alpha / alpha_t * x + (sigma - alpha / alpha_t * sigma_t) * eps


@register("solver", "pndm")
def pndm(warm_up: str = "linear") -> Solver:
    """Pseudo linear multistep: the last four predictions of the noise, with the weights of even steps in time.

    The weights are the published ones whatever the grid: use one that is even in time, such as `uniform` or `leading`.

    Args:
      warm_up: how it starts. "linear": a step of Heun's kind, then two and three predictions (the "PLMS" of latent
        diffusion); N + 1 evaluations. "runge_kutta": three steps of four evaluations (the paper's F-PNDM); N + 9.

    Source: Liu et al. 2022, algorithm 2 and equations 11 to 13 (arXiv 2202.09778).
    """
    if warm_up not in WARM_UPS:
        raise ConfigError(f"solver 'pndm': unknown warm_up {warm_up!r} (known: {', '.join(WARM_UPS)})")
    least = 2 if warm_up == "linear" else 4

    def check(process: Corruption, times: np.ndarray) -> None:
        needs_signal("'pndm'")(process, times)
        if len(times) - 1 < least:
            raise ConfigError(
                f"solver 'pndm' with the warm_up {warm_up!r} needs {least} steps at least, got {len(times) - 1}; "
                "for fewer, use 'ddim' or 'dpmpp_2m'"
            )

    def init(x: jax.Array, num_steps: int) -> Any:
        return (jnp.zeros_like(x),) * 3, jnp.zeros((), jnp.int32)  # earlier noises, the latest first; steps made

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, (earlier, count) = denoiser.process, state
        eps = denoiser(x, t).eps

        def multistep(order: int) -> Data:
            return sum(w * e for w, e in zip(ADAMS_BASHFORTH[order - 1], (eps, *earlier), strict=False))

        def heun() -> Data:
            return 0.5 * (eps + denoiser(_transfer(process, x, eps, t, s), s).eps)

        def runge_kutta() -> Data:
            half = (0.5 * (t + s)).astype(t.dtype)
            second = denoiser(_transfer(process, x, eps, t, half), half).eps
            third = denoiser(_transfer(process, x, second, t, half), half).eps
            fourth = denoiser(_transfer(process, x, third, t, s), s).eps
            return (eps + 2 * second + 2 * third + fourth) / 6

        if warm_up == "linear":
            branches = [heun, lambda: multistep(2), lambda: multistep(3), lambda: multistep(4)]
            mean = jax.lax.switch(jnp.minimum(count, 3), branches)
        else:
            mean = jax.lax.cond(count < 3, runge_kutta, lambda: multistep(4))
        return _transfer(process, x, mean, t, s), ((eps, *earlier[:2]), count + 1)

    return Solver(init, step, check=check)
