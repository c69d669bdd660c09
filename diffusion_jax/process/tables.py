"""log-SNR as numbers: what families make of it, and the chains whose tables of it are exact at their steps."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.lazy import lazy

special = lazy("scipy.special")

Family = Literal["vp", "ve", "linear"]

# Times this close to a step (in units of a step) are the step: times carry rounding, tables are exact.
_SNAP = {"float32": 2e-3, "float64": 1e-9}


def namespace(value: Any) -> tuple[ModuleType, Any, Any]:
    """Return (numpy-like module, sigmoid, value as a floating array) for JAX or for numpy input."""
    if isinstance(value, jax.Array):
        return jnp, jax.nn.sigmoid, value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return np, special.expit, np.asarray(value, np.float64)


def alpha_sigma_from_log_snr(log_snr: Any, family: Family) -> tuple[Any, Any]:
    """Return (alpha, sigma) with alpha^2 / sigma^2 = exp(log_snr), shaped like `log_snr`.

    Families: "vp" has alpha^2 + sigma^2 = 1, "ve" has alpha = 1, "linear" has alpha + sigma = 1 (flow matching).
    Infinite log-SNR gives exactly (1, 0), and minus infinity (0, 1).
    """
    xp, sigmoid, log_snr = namespace(log_snr)
    if family == "vp":
        return xp.sqrt(sigmoid(log_snr)), xp.sqrt(sigmoid(-log_snr))
    if family == "ve":
        return xp.ones_like(log_snr), xp.exp(-0.5 * log_snr)
    return sigmoid(0.5 * log_snr), sigmoid(-0.5 * log_snr)


@dataclasses.dataclass(frozen=True, eq=False)
class LogSnrTable:
    """log-SNR at t = 1/T, 2/T, ..., 1, strictly decreasing, float64 of shape [T]; the last entry may be -inf."""

    knots: np.ndarray

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> LogSnrTable:
        """Return the table of the chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z."""
        if betas.ndim != 1 or betas.size < 1:
            raise ConfigError(f"betas must be a one-dimensional table, got the shape {betas.shape}")
        may_be_one = np.arange(betas.size) == betas.size - 1
        bad = np.flatnonzero(~((betas > 0) & ((betas < 1) | ((betas == 1) & may_be_one))))
        if bad.size:
            raise ConfigError(
                f"beta {bad[0]} of {betas.size} is {betas[bad[0]]}: betas must lie in (0, 1), and only the last may be 1"
            )
        with np.errstate(divide="ignore"):
            log_alpha_bar = np.cumsum(np.log1p(-betas))
            return cls(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.knots)

    def log_snr(self, t: Any) -> Any:
        """Return the log-SNR at times t in [0, 1]; +inf at 0. numpy: float64; JAX: float32."""
        xp, sigmoid, _ = namespace(t)
        is_jax = xp is jnp
        knots = xp.asarray(self.knots, jnp.float32 if is_jax else np.float64)
        u = xp.clip(xp.asarray(t, knots.dtype), 0.0, 1.0) * self.num_steps
        u = xp.where(xp.abs(u - xp.round(u)) < _SNAP["float32" if is_jax else "float64"], xp.round(u), u)
        index = xp.clip(xp.ceil(u).astype(int), 1, self.num_steps)  # u lies in (index - 1, index]
        weight = u - (index - 1)
        upper = knots[index - 1]
        # Before the first step, and before a last step of zero SNR, an end of the interval is infinite: there the
        # noise variance, or the signal variance, is interpolated linearly instead.
        first = _logit_of_complement(xp, xp.clip(weight, 0.0, 1.0) * sigmoid(-knots[0]))
        lower = knots[xp.maximum(index - 2, 0)]
        last = -_logit_of_complement(xp, (1 - weight) * sigmoid(lower))
        finite = xp.where(xp.isfinite(upper), upper, 0.0)
        # (1 - w) lower + w upper, written so that w = 1 gives `upper` to the last digit.
        between = finite + (1 - weight) * (lower - finite)
        value = xp.where(xp.isfinite(upper), between, last)
        value = xp.where(index == 1, xp.where(u >= 1, knots[0], first), value)
        return xp.where(u <= 0, xp.inf, value)

    def inverse(self, log_snr: Any) -> Any:
        """Return the time of a log-SNR, in [0, 1]."""
        xp, sigmoid, _ = namespace(log_snr)
        finite = self.knots[np.isfinite(self.knots)]
        knots = xp.asarray(finite, jnp.float32 if xp is jnp else np.float64)
        log_snr = xp.asarray(log_snr, knots.dtype)
        u = xp.interp(-log_snr, -knots, xp.arange(1, len(finite) + 1, dtype=knots.dtype))
        u = xp.where(log_snr > knots[0], sigmoid(-log_snr) / sigmoid(-knots[0]), u)
        if len(finite) < self.num_steps:
            beyond = self.num_steps - sigmoid(log_snr) / sigmoid(knots[-1])
            u = xp.where(log_snr < knots[-1], beyond, u)
        return u / self.num_steps


def _logit_of_complement(xp: Any, variance: Any) -> Any:
    """log((1 - v) / v) for a variance v in [0, 1)."""
    safe = xp.where(variance > 0, variance, 0.5)
    return xp.where(variance > 0, xp.log1p(-safe) - xp.log(safe), xp.inf)
