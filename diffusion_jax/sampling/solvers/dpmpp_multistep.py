"""DPM-Solver++ that remembers earlier predictions: orders 2 and 3 at one evaluation a step, for the ODE and the SDE."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.types import Data, Denoiser
from diffusion_jax.registry import register
from diffusion_jax.sampling.solvers.base import Noise, Solver
from diffusion_jax.sampling.solvers.dpmpp_singlestep import midpoint_step
from diffusion_jax.sampling.solvers.exponential import advance, deviation, phi, span


@register("solver", "dpmpp_2m")
def dpmpp_2m(variant: str = "midpoint") -> Solver:
    """DPM-Solver++(2M): order 2 with one evaluation a step; first order at the first step and at the step to 0.

    Args:
      variant: how the slope of x0 in half-log-SNR enters: "midpoint", the paper's algorithm 2, or "taylor".

    Source: Lu et al. 2022 (arXiv 2211.01095).
    """
    return _second_order("dpmpp_2m", 0.0, variant)


@register("solver", "dpmpp_2m_sde")
def dpmpp_2m_sde(eta: float = 1.0, variant: str = "midpoint") -> Solver:
    """SDE-DPM-Solver++(2M): `dpmpp_2m` on the reverse SDE, one evaluation a step.

    Args:
      eta: in [0, 1], how much of the SDE's noise: 1 is the reverse SDE, 0 is `dpmpp_2m`.
      variant: as in `dpmpp_2m`.

    Source: Lu et al. 2022, section 5 (arXiv 2211.01095).
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"solver 'dpmpp_2m_sde': eta must lie in [0, 1], got {eta}")
    return _second_order("dpmpp_2m_sde", eta, variant)


def _second_order(name: str, eta: float, variant: str) -> Solver:
    if variant not in ("midpoint", "taylor"):
        raise ConfigError(f"solver {name!r}: unknown variant {variant!r} (known: midpoint, taylor)")

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


@register("solver", "dpmpp_3m")
def dpmpp_3m(form: str = "exact") -> Solver:
    """DPM-Solver++(3M): order 3 with one evaluation a step; first order at the step to 0.

    With m_0 the prediction now, m_1 and m_2 the earlier ones, the parabola through them in half-log-SNR is integrated.

    Args:
      form: "exact" integrates it exactly: order 3. The first step is one of `dpmpp_2s`, of one evaluation more, and so is
        any that is more than twice as long as the one before; the second is one of `dpmpp_2m`. "library" is what public
        libraries run: half of the parabola's second derivative, and a start of first order; order 2, by measurement.

    Source: Lu et al. 2022, section 4 and appendix B (arXiv 2211.01095).
    """
    if form not in ("exact", "library"):
        raise ConfigError(f"solver 'dpmpp_3m': unknown form {form!r} (known: exact, library)")
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
