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

Family = Literal["vp", "subvp", "ve", "linear"]

# Times this close to a step (in units of a step) are the step: times carry rounding, tables are exact.
_SNAP = {"float32": 2e-3, "float64": 1e-9}


def namespace(value: Any) -> tuple[ModuleType, Any, Any]:
    """Return (numpy-like module, sigmoid, value as a floating array) for JAX or for numpy input."""
    if isinstance(value, jax.Array):
        return jnp, jax.nn.sigmoid, floating(value)
    return np, special.expit, np.asarray(value, np.float64)


def floating(value: Any) -> jax.Array:
    """Return a JAX array of float32, or of float64 where the value is of float64 and JAX is told to keep it."""
    value = jnp.asarray(value)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def pair(s: Any, t: Any) -> tuple[ModuleType, Any, Any]:
    """Return (numpy-like module, s, t), both floating arrays of JAX where one of them is, else of numpy."""
    if isinstance(s, jax.Array) or isinstance(t, jax.Array):
        return jnp, floating(s), floating(t)
    return np, np.asarray(s, np.float64), np.asarray(t, np.float64)


def log_ratio(xp: ModuleType, s: Any, t: Any) -> Any:
    """Return log(t / s) for 0 <= s <= t, to the last digits where the two are close; infinite at s = 0."""
    safe = xp.where(s > 0, s, 1.0)
    return xp.where(s > 0, xp.log1p((t - safe) / safe), xp.inf)


def alpha_sigma_from_log_snr(log_snr: Any, family: Family) -> tuple[Any, Any]:
    """Return (alpha, sigma) with alpha^2 / sigma^2 = exp(log_snr), shaped like `log_snr`.

    Families: "vp" has alpha^2 + sigma^2 = 1, "subvp" alpha^2 + sigma = 1, "ve" has alpha = 1, "linear" has alpha + sigma = 1
    (flow matching).
    Infinite log-SNR gives exactly (1, 0), and minus infinity (0, 1).
    """
    xp, sigmoid, log_snr = namespace(log_snr)
    if family == "vp":
        return xp.sqrt(sigmoid(log_snr)), xp.sqrt(sigmoid(-log_snr))
    if family == "ve":
        return xp.ones_like(log_snr), xp.exp(-0.5 * log_snr)
    if family == "subvp":
        level = xp.exp(-0.5 * log_snr)
        return 2 / (level + xp.hypot(level, 2.0)), 2 / (1 + xp.hypot(1.0, 2 * xp.exp(0.5 * log_snr)))
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
        """Return the log-SNR at times t in [0, 1], in their dtype; +inf at 0."""
        value, rest = self._parts(t)
        return value + rest

    def drop(self, s: Any, t: Any) -> Any:
        """Return log_snr(s) - log_snr(t) with the digits that the two levels have lost; infinite where one of them is."""
        xp, s, t = pair(s, t)
        (high, more), (low, less) = self._parts(s), self._parts(t)
        return (high - low) + (more - less)

    def _parts(self, t: Any) -> tuple[Any, Any]:
        """Two numbers that add up to the log-SNR, the second a small one: together they have digits that the sum has not."""
        xp, sigmoid, t = namespace(t)
        exact = np.where(np.isfinite(self.knots), self.knots, 0.0)
        knots, lacking, gaps = (
            xp.asarray(table, t.dtype)
            for table in (self.knots, exact - exact.astype(t.dtype), np.diff(exact, prepend=exact[0]))
        )
        u = xp.clip(t, 0.0, 1.0) * self.num_steps
        u = xp.where(xp.abs(u - xp.round(u)) < _SNAP[str(t.dtype)], xp.round(u), u)
        index = xp.clip(xp.ceil(u).astype(int), 1, self.num_steps)  # u lies in (index - 1, index]
        weight = u - (index - 1)
        upper = knots[index - 1]
        # Before the first step, and before a last step of zero SNR, an end of the interval is infinite: there the
        # noise variance, or the signal variance, is interpolated linearly instead.
        first = _logit_of_complement(xp, xp.clip(weight, 0.0, 1.0) * sigmoid(-knots[0]))
        last = -_logit_of_complement(xp, (1 - weight) * sigmoid(knots[xp.maximum(index - 2, 0)]))
        between = xp.isfinite(upper) & ((index > 1) | (u >= 1))
        value = xp.where(xp.isfinite(upper), xp.where(between, upper, first), last)
        rest = xp.where(between, lacking[index - 1] - (1 - weight) * gaps[index - 1], 0.0)
        return xp.where(u <= 0, xp.inf, value), rest

    def inverse(self, log_snr: Any) -> Any:
        """Return the time of a log-SNR, in [0, 1]."""
        xp, sigmoid, log_snr = namespace(log_snr)
        finite = self.knots[np.isfinite(self.knots)]
        knots = xp.asarray(finite, log_snr.dtype)
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
