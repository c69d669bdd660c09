"""UniPC: a predictor that extrapolates x0 through earlier predictions, and a corrector that reuses the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver
from diffusion_jax.sampling.solvers.exponential import advance, phi, span

B_FUNCTIONS = ("bh1", "bh2")


@register("solver", "unipc")
def unipc(order: int = 2, b: str = "bh2", corrector: bool = True) -> Solver:
    """UniPC in the prediction of x0, one evaluation a step.

    A step at t first corrects x_t with the prediction just made at it (UniC), then predicts x_s (UniP). The first steps
    have the orders for which there is history; the step to 0 is of first order; from zero SNR the first one is.

    Args:
      order: 1, 2 or 3, of the predictor. The corrector adds one to the order of the run.
      b: the function B(h): "bh2" is e^h - 1, better for guided sampling on few steps; "bh1" is h.
      corrector: False is UniP alone.

    Source: Zhao et al. 2023, section 3 and appendix E (arXiv 2302.04867).
    """
    if order not in (1, 2, 3):
        raise ConfigError(f"solver 'unipc': order must be 1, 2 or 3, got {order}")
    if b not in B_FUNCTIONS:
        raise ConfigError(f"solver 'unipc': unknown b {b!r} (known: {', '.join(B_FUNCTIONS)})")

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
