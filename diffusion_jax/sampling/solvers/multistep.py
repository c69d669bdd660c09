"""Multistep methods of other kinds than DPM-Solver++: PNDM, and UniPC with its corrector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Corruption, Data, Denoiser
from diffusion_jax.registry import part
from diffusion_jax.sampling.solvers.base import Noise, Solver, needs_signal
from diffusion_jax.sampling.solvers.dpmpp import advance, phi, span
from diffusion_jax.values import Range

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _transfer(process: Process, x: Data, eps: Data, t: jax.Array, s: jax.Array) -> Data:
    """x_s where eps is the noise in x_t (equation 11)."""
    (alpha_t, sigma_t), (alpha, sigma) = process.alpha_sigma(t), process.alpha_sigma(s)
    return alpha / alpha_t * x + (sigma - alpha / alpha_t * sigma_t) * eps


@part("solver", "pndm")
def pndm(warm_up: Literal["linear", "runge_kutta"] = "linear") -> Solver:
    """Step by a pseudo linear multistep: the last four predictions of the noise, with the weights of even steps in time.

    The weights are the published ones whatever the grid: use one that is even in time, such as `uniform` or `leading`.

    Args:
      warm_up: how it starts. "linear": a step of Heun's kind, then two and three predictions (the "PLMS" of latent
        diffusion); N + 1 evaluations. "runge_kutta": three steps of four evaluations (the paper's F-PNDM); N + 9.

    Source: Liu et al. 2022, algorithm 2 and equations 11 to 13 (arXiv 2202.09778).
    """
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


@part("solver", "unipc")
def unipc(order: Annotated[int, Range(1, 3)] = 2, b: Literal["bh1", "bh2"] = "bh2", corrector: bool = True) -> Solver:
    """Step as UniPC in the prediction of x0, one evaluation a step.

    A step at t first corrects x_t with the prediction just made at it (UniC), then predicts x_s (UniP). The first steps
    have the orders for which there is history; the step to 0 is of first order; from zero SNR the first one is.

    Args:
      order: of the predictor. The corrector adds one to the order of the run.
      b: the function B(h): "bh2" is e^h - 1, better for guided sampling on few steps; "bh1" is h.
      corrector: False is UniP alone.

    Source: Zhao et al. 2023, section 3 and appendix E (arXiv 2302.04867).
    """

    def init(x: jax.Array, num_steps: int) -> Any:
        # The corrected x before; predictions and their times, the latest first; how many there are.
        return jnp.zeros_like(x), (jnp.zeros_like(x),) * order, (jnp.ones((), x.dtype),) * order, jnp.zeros((), jnp.int32)

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, (before, predictions, times, count) = denoiser.process, state
        x0 = denoiser(x, t).x0

        def correct(k: int) -> Data:
            ends = (*predictions[:k], x0), (*times[:k], t)
            return _update(process, before, *ends, t, k, b).astype(x.dtype)

        def predict(k: int) -> Data:
            return _update(process, x, predictions[:k], times[:k], s, k, b).astype(x.dtype)

        if corrector:
            orders = [lambda: x] + [lambda k=k: correct(k) for k in range(1, order + 1)]
            x = jax.lax.switch(jnp.minimum(count, order), orders)
        # A time of zero SNR has no place among the points of a polynomial.
        finite = jnp.isfinite(process.log_snr(t))
        predictions, times = (x0, *predictions[:-1]), (t.astype(times[0].dtype), *times[:-1])
        count = count + finite.astype(count.dtype)
        orders = [lambda: advance(process, x, x0, t, s).astype(x.dtype)] + [lambda k=k: predict(k) for k in range(2, order + 1)]
        reached = jax.lax.switch(jnp.where(s > 0, jnp.clip(count, 1, order) - 1, 0), orders)
        return reached, (x, predictions, times, count)

    return Solver(init, step)


def _update(
    process: Process, x: Data, predictions: Sequence[Data], times: Sequence[jax.Array], s: jax.Array, order: int, b: str
) -> Data:
    """From times[0], where x is, to s: x0 held constant, plus B(h) times weighted differences to the other predictions.

    The points are r_j = (l_j - l_0) / h, and with n of them the weights a_j solve, for k = 1 to n,
    sum_j r_j^(k-1) a_j = k! h phi_{k+1}(-h) / B(h), where phi are those of exponential integrators and l is the
    half-log-SNR; signs are such that they suit the prediction of x0.
    """
    h = span(process, times[0], s)
    z = -h
    scale = z if b == "bh1" else jnp.expm1(z)
    points = [span(process, times[0], time) / h for time in times[1:]]
    differences = [(prediction - predictions[0]) / r for prediction, r in zip(predictions[1:], points, strict=True)]
    if len(points) == 1:
        weights = jnp.full((1,), 0.5, scale.dtype)  # the published choice, for any B
    else:
        factorial, right = 1.0, []
        for k in range(1, len(points) + 1):
            factorial *= k
            right.append(factorial * z * phi(k + 1, z) / scale)
        weights = jnp.linalg.solve(jnp.stack([jnp.stack(points) ** k for k in range(len(points))]), jnp.stack(right))
    residual = sum(weight * difference for weight, difference in zip(weights, differences, strict=True))
    return advance(process, x, predictions[0], times[0], s) - process.alpha_sigma(s)[0] * scale * residual
