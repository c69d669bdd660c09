"""Multistep methods that continue the latest noises by a polynomial and integrate it: DEIS and linear multistep.

With y = x / alpha and the level r = sigma / alpha the flow is dy = eps dr. A polynomial in a variable u(r) through the noises
eps_j at the latest times gives y_s = y_t + sum_j w_j eps_j, where w_j is the integral of the j-th Lagrange polynomial over r.
The variable is what tells the methods apart.

Source: Zhang & Chen 2023, section 3 (arXiv 2204.13902).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import part
from diffusion_jax.sampling.solvers.base import Noise, Solver, level, ode_step
from diffusion_jax.values import Range

Variable = Literal["t", "log_rho", "rho"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)  # Gauss and Legendre's, on [-1, 1]


@part("solver", "deis")
def deis(order: Annotated[int, Range(1, 3)] = 3, variable: Literal["t", "log_rho"] = "t") -> Solver:
    """Step as DEIS: the polynomial is in time, or in log(sigma / alpha). Deterministic, N evaluations, any Gaussian process.

    The first steps have the orders for which there is history; the step to 0 is of first order (DDIM's), and so is one from
    zero SNR.

    Args:
      order: how many noises the polynomial goes through; 1 is DDIM.
      variable: "t", the paper's tAB in the process's own time; or "log_rho", which public libraries call DEIS. The
        paper's third, rho itself, is `lms`.

    Source: Zhang & Chen 2023, section 3.3 (arXiv 2204.13902).
    """
    return _multistep(order, variable)


@part("solver", "lms")
def lms(order: Annotated[int, Range(1, 4)] = 4) -> Solver:
    """Step by Adams and Bashforth's method in sigma / alpha, with weights for the grid's own steps.

    Deterministic, N evaluations, any Gaussian process. The first steps have the orders for which there is history; the step
    to 0 keeps the order, and one from zero SNR is of first order.

    Args:
      order: how many noises the polynomial goes through; 1 is DDIM.

    Source: k-diffusion's sample_lms; Zhang & Chen 2023, section 3.3, where it is rhoAB (arXiv 2204.13902).
    """
    return _multistep(order, "rho")


def _multistep(order: int, variable: Variable) -> Solver:
    def init(x: jax.Array, num_steps: int) -> Any:
        # Earlier noises and their times, the latest first; how many there are.
        earlier = order - 1
        return (jnp.zeros_like(x),) * earlier, (jnp.ones((), x.dtype),) * earlier, jnp.zeros((), jnp.int32)

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, (earlier, times, count) = denoiser.process, state
        denoised = denoiser(x, t)

        def weights(number: int) -> jax.Array:
            found = _weights(process, (t, *times[:number]), s, variable)[1:] if number else jnp.zeros(0, x.dtype)
            return jnp.zeros(order - 1, x.dtype).at[:number].set(found.astype(x.dtype))

        # A time of zero SNR has no place among the points of a polynomial, nor 0 among logarithms.
        finite = jnp.isfinite(process.log_snr(t))
        usable = finite & ((s > 0) | (variable == "rho"))
        orders = [lambda n=n: weights(n) for n in range(order)]
        found = jax.lax.switch(jnp.where(usable, jnp.minimum(count, order - 1), 0), orders)
        # The weights sum to the step in r: what is left of the latest noise's is Euler's step.
        bend = sum(weight * (other - denoised.eps) for weight, other in zip(found, earlier, strict=True))
        reached = ode_step(process, denoised, s) + process.alpha_sigma(s)[0] * bend
        noises, times = (denoised.eps, *earlier)[: order - 1], (t.astype(x.dtype), *times)[: order - 1]
        return reached, (noises, times, count + finite.astype(count.dtype))

    return Solver(init, step)


def _weights(process: Process, times: Sequence[jax.Array], s: jax.Array, variable: Variable) -> jax.Array:
    """The weights [len(times)] of the noises at `times` in the integral over sigma / alpha from times[0] to s."""

    def log_level(t: jax.Array) -> jax.Array:
        return -0.5 * process.log_snr(t)

    place = {"rho": lambda t: level(process, t), "log_rho": log_level, "t": lambda t: t}[variable]
    across = place if variable == "rho" else log_level  # what is integrated over
    start, end = across(times[0]), across(s)
    half = 0.5 * (end - start)
    nodes = start + half * (1 + jnp.asarray(_NODES, half.dtype))
    measure = half * jnp.asarray(_WEIGHTS, half.dtype) * (1.0 if variable == "rho" else jnp.exp(nodes))
    at = process.schedule.inverse(-2 * nodes) if variable == "t" else nodes
    points = [place(t) for t in times]

    def integral(number: int) -> jax.Array:
        value = measure
        for other in (*points[:number], *points[number + 1 :]):
            value = value * (at - other) / (points[number] - other)
        return value.sum()

    return jnp.stack([integral(number) for number in range(len(points))])
