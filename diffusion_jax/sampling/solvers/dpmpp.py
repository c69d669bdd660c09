"""DPM-Solver++: exponential integration in half-log-SNR l = ln(alpha / sigma), of the flow and of the reverse SDE.

The linear part of both is exact. Over a step from t to s with h = l_s - l_t, and x0 held constant,

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) x0 + sigma_s sqrt(1 - e^(-2 eta h)) z.

eta = 0 is the probability-flow ODE (and DDIM's step), eta = 1 the reverse SDE. h is infinite from zero SNR and to s = 0,
where the step is still finite.

Source: Lu et al. 2022, sections 4 and 5 (arXiv 2211.01095).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.process import Process
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import part
from diffusion_jax.sampling.solvers.base import Noise, Solver, stateless
from diffusion_jax.values import Fraction

Variant = Literal["midpoint", "taylor"]


def span(process: Process, t: jax.Array, s: jax.Array) -> jax.Array:
    """Return h = l_s - l_t > 0, a scalar."""
    return 0.5 * process.drop(s, t)


def advance(process: Process, x: Data, x0: Data, t: jax.Array, s: jax.Array, eta: float = 0.0) -> Data:
    """Return the mean of x_s with x0 held constant."""
    alpha, sigma = process.alpha_sigma(s)
    h = span(process, t, s)
    kept = sigma / process.alpha_sigma(t)[1]
    kept = kept * jnp.exp(-eta * h) if eta else kept
    return kept * x - alpha * jnp.expm1(-(1 + eta) * h) * x0


def deviation(process: Process, t: jax.Array, s: jax.Array, eta: float) -> jax.Array:
    """Return the standard deviation of x_s about that mean, for eta > 0."""
    return process.alpha_sigma(s)[1] * jnp.sqrt(-jnp.expm1(-2 * eta * span(process, t, s)))


def phi(k: int, z: jax.Array) -> jax.Array:
    """Compute phi_0 = e^z, phi_k(z) = (phi_{k-1}(z) - 1 / (k - 1)!) / z, with phi_k(0) = 1 / k!; z is finite."""
    small = jnp.abs(z) < 1
    safe = jnp.where(small, 1.0, z)
    value = jnp.expm1(safe) / safe  # phi_1
    for j in range(2, k + 1):
        value = (value - 1 / _factorial(j - 1)) / safe
    # The recursion loses digits near 0, where the series has them after a few terms.
    series = sum(z**n / _factorial(n + k) for n in range(12))
    return jnp.where(small, series, value)


def _factorial(n: int) -> float:
    return float(np.prod(np.arange(1, n + 1, dtype=np.float64)))


def middle(process: Any, t: jax.Array, s: jax.Array, fraction: float = 0.5) -> jax.Array:
    """Return the time between t and s at that fraction of the step in half-log-SNR, a scalar of t's dtype."""
    low, high = process.log_snr(t), process.log_snr(s)
    return process.schedule.inverse(low + fraction * (high - low)).astype(t.dtype)


def midpoint_step(
    denoiser: Denoiser, x: Data, x0: Data, t: jax.Array, s: jax.Array, eta: float = 0.0, noise: Noise | None = None
) -> Data:
    """Walk from t to s with the prediction x0 at t and one more in the middle; t of finite log-SNR and s > 0."""
    process = denoiser.process
    between = middle(process, t, s)
    inner = advance(process, x, x0, t, between, eta)
    if eta:
        drawn = deviation(process, t, between, eta) * noise("middle")
        inner = inner + drawn
    slope = (denoiser(inner, between).x0 - x0) * (span(process, t, s) / span(process, t, between))
    end = advance(process, x, x0 + 0.5 * slope, t, s, eta)
    if eta:
        # The path's own noise: that of the first half, carried on, and that of the second.
        carried = process.alpha_sigma(s)[1] / process.alpha_sigma(between)[1] * jnp.exp(-eta * span(process, between, s))
        end = end + carried * drawn + deviation(process, between, s, eta) * noise("step")
    return end


@part("solver", "dpmpp_2s")
def dpmpp_2s() -> Solver:
    """Step as DPM-Solver++(2S): order 2 without history; order 1 at the step to 0, and from zero SNR. 2N - 1 evaluations.

    Source: Lu et al. 2022, algorithm 1 with r = 1/2 (arXiv 2211.01095).
    """
    return _midpoint(0.0)


@part("solver", "dpmpp_sde")
def dpmpp_sde(eta: Fraction = 1.0) -> Solver:
    """Step as DPM-Solver++(2S) on the reverse SDE, one path of noise through the middle of each step. 2N - 1 evaluations.

    Args:
      eta: how much of the SDE's noise: 1 is the reverse SDE, 0 is `dpmpp_2s`.

    Source: Lu et al. 2022, sections 4 and 5 (arXiv 2211.01095). Libraries draw the path in sigma; here it is drawn with
    the SDE's own correlation, which needs no tree of Brownian increments.
    """
    return _midpoint(eta)


def _midpoint(eta: float) -> Solver:
    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, x0 = denoiser.process, denoiser(x, t).x0

        def one() -> Data:
            end = advance(process, x, x0, t, s, eta)
            return (end + deviation(process, t, s, eta) * noise("step") if eta else end).astype(x.dtype)

        def two() -> Data:
            return midpoint_step(denoiser, x, x0, t, s, eta, noise).astype(x.dtype)

        # A condition, not a selection: the last step costs one evaluation.
        return jax.lax.cond((s > 0) & jnp.isfinite(process.log_snr(t)), two, one), state

    return Solver(stateless, step, evaluations=2)


@part("solver", "dpmpp_2m")
def dpmpp_2m(variant: Variant = "midpoint") -> Solver:
    """Step as DPM-Solver++(2M): order 2 with one evaluation a step; first order at the first step and at the step to 0.

    Args:
      variant: how the slope of x0 in half-log-SNR enters: "midpoint", the paper's algorithm 2, or "taylor".

    Source: Lu et al. 2022 (arXiv 2211.01095).
    """
    return _second_order(0.0, variant)


@part("solver", "dpmpp_2m_sde")
def dpmpp_2m_sde(eta: Fraction = 1.0, variant: Variant = "midpoint") -> Solver:
    """Step as SDE-DPM-Solver++(2M): `dpmpp_2m` on the reverse SDE, one evaluation a step.

    Args:
      eta: how much of the SDE's noise: 1 is the reverse SDE, 0 is `dpmpp_2m`.
      variant: as in `dpmpp_2m`.

    Source: Lu et al. 2022, section 5 (arXiv 2211.01095).
    """
    return _second_order(eta, variant)


def _second_order(eta: float, variant: Variant) -> Solver:
    def init(x: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(x), jnp.zeros((), x.dtype)  # the previous x0; the previous step in half-log-SNR, 0: none

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, (previous, last_h) = denoiser.process, state
        x0, h, alpha = denoiser(x, t).x0, span(process, t, s), process.alpha_sigma(s)[0]
        second_order = (last_h > 0) & (s > 0)  # from zero SNR last_h is infinite, and the slope 0
        safe_h = jnp.where(second_order, h, 1.0)
        slope = jnp.where(second_order, safe_h / jnp.where(second_order, last_h, 1.0), 0.0) * (x0 - previous)
        z = -(1 + eta) * safe_h
        weight = 0.5 * jnp.expm1(z) if variant == "midpoint" else z * phi(2, z)
        x = advance(process, x, x0, t, s, eta) - alpha * weight * slope
        if eta:
            x = x + deviation(process, t, s, eta) * noise("step")
        return x, (x0, h.astype(last_h.dtype))

    return Solver(init, step)


@part("solver", "dpmpp_3m")
def dpmpp_3m(form: Literal["exact", "library"] = "exact") -> Solver:
    """Step as DPM-Solver++(3M): order 3 with one evaluation a step; first order at the step to 0.

    With m_0 the prediction now, m_1 and m_2 the earlier ones, the parabola through them in half-log-SNR is integrated.

    Args:
      form: "exact" integrates it exactly: order 3. The first step is one of `dpmpp_2s`, of one evaluation more, and so is
        any that is more than twice as long as the one before; the second is one of `dpmpp_2m`. "library" is what public
        libraries run: half of the parabola's second derivative, and a start of first order; order 2, by measurement.

    Source: Lu et al. 2022, section 4 and appendix B (arXiv 2211.01095).
    """
    curvature = 2.0 if form == "exact" else 1.0

    def init(x: jax.Array, num_steps: int) -> Any:
        none = jnp.zeros((), x.dtype)
        return (jnp.zeros_like(x), jnp.zeros_like(x)), (none, none)  # earlier predictions; the steps between them, 0: none

    def step(denoiser: Denoiser, x: Data, state: Any, t: jax.Array, s: jax.Array, noise: Noise) -> tuple[Data, Any]:
        process, ((m1, m2), (h1, h2)) = denoiser.process, state
        m0, h, alpha = denoiser(x, t).x0, span(process, t, s), process.alpha_sigma(s)[0]

        def multistep() -> Data:
            second, third = (h1 > 0) & (s > 0), (h2 > 0) & (s > 0)
            z = jnp.where(second, h, 1.0)
            d1 = jnp.where(second, z / jnp.where(second, h1, 1.0), 0.0) * (m0 - m1)
            before = jnp.where(third, z / jnp.where(third, h2, 1.0), 0.0) * (m1 - m2)
            both = jnp.where(third, h1 + h2, 1.0)  # infinite if the run began at zero SNR: then the order stays 2
            bend = jnp.where(third, d1 - before, 0.0)
            slope, d2 = d1 + jnp.where(third, h1 / both, 0.0) * bend, jnp.where(third, z / both, 0.0) * bend
            slope = jnp.where(jnp.isfinite(both), slope, d1)
            correction = z * (phi(2, -z) * slope + curvature * phi(3, -z) * d2)
            return advance(process, x, m0, t, s) + alpha * correction

        if form == "exact":
            # A condition, not a selection: one evaluation more where the parabola has no points, or would reach far.
            single = ((h > 2 * h1) | jnp.isinf(h1)) & (s > 0) & jnp.isfinite(h)
            x = jax.lax.cond(
                single,
                lambda: midpoint_step(denoiser, x, m0, t, s).astype(x.dtype),
                lambda: multistep().astype(x.dtype),
            )
        else:
            x = multistep()
        return x, ((m0, m1), (h.astype(h1.dtype), h1))

    return Solver(init, step)
