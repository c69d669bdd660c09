"""Noise schedules: log-SNR as a function of time, and the family that turns it into (alpha, sigma).

Time is continuous, t in [0, 1]: t = 0 is data (sigma = 0, log-SNR = +inf) and t = 1 is noise. A schedule evaluates
numpy input in float64, which time grids use, and JAX input in its own dtype, float32 at least, which networks and solvers
use. What is made of two levels that may be close, such as a posterior's variance, takes their difference from `drop`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.tables import Family, LogSnrTable, alpha_sigma_from_log_snr, log_ratio, namespace, pair
from diffusion_jax.registry import build, part
from diffusion_jax.values import Count, Fraction, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A monotone map from time to log-SNR, and a family.

    Attributes:
      name: for messages.
      family: "vp", "subvp", "ve" or "linear"; see `alpha_sigma_from_log_snr`.
      log_snr: t in [0, 1] -> log(alpha^2 / sigma^2), strictly decreasing, same shape.
      inverse: log-SNR -> t in [0, 1], the inverse of `log_snr` where it is finite.
      num_steps: the number T of steps of a discrete schedule (step i, from 0, is at t = (i + 1) / T), or None.
      t_min: the earliest time worth training on; time samplers draw none before it.
      exact_drop: what `drop` is to return, where it can be had with more digits than by subtraction.
    """

    name: str
    family: Family
    log_snr: Callable[[Any], Any]
    inverse: Callable[[Any], Any]
    num_steps: int | None = None
    t_min: float = 0.0
    exact_drop: Callable[[Any, Any], Any] | None = None

    def alpha_sigma(self, t: Any) -> tuple[Any, Any]:
        """Return (alpha, sigma) at times t, shaped like t."""
        return alpha_sigma_from_log_snr(self.log_snr(t), self.family)

    def drop(self, s: Any, t: Any) -> Any:
        """Return log_snr(s) - log_snr(t) for times s <= t, at least 0, as their shapes broadcast.

        It keeps the digits that the two levels lose where the times are close: in float32 a relative 1e-6, where 1 - SNR_t /
        SNR_s from subtracted levels is 2e-4 off for neighbours of a chain. Infinite where s is data, or t of zero SNR.
        """
        return self.log_snr(s) - self.log_snr(t) if self.exact_drop is None else self.exact_drop(s, t)

    def time_of(self, index: Any) -> Any:
        """Return the times (i + 1) / T of steps i of a chain, from 0, as published code counts them; shaped like `index`.

        Raises:
          ConfigError: a continuous schedule, which has no steps.

        >>> float(linear().time_of(0)), int(linear().index_of(1.0))
        (0.001, 999)
        """
        xp = namespace(index)[0]
        return (xp.asarray(index) + 1) / self._chain()

    def index_of(self, t: Any) -> Any:
        """Return the steps, integers from 0 to T - 1, that are nearest to times t, shaped like t; the inverse of `time_of`.

        Raises:
          ConfigError: a continuous schedule, which has no steps.
        """
        xp, _, t = namespace(t)
        return xp.clip(xp.round(t * self._chain()).astype(int) - 1, 0, self.num_steps - 1)

    def _chain(self) -> int:
        if self.num_steps is None:
            raise ConfigError(f"the schedule {self.name!r} is continuous and has no steps: use times in [0, 1]")
        return self.num_steps


@part("schedule", "betas")
def from_betas(betas: Any, name: str = "betas") -> Schedule:
    """Return a variance-preserving chain of T given betas, exact at t = (i + 1) / T and interpolated in log-SNR between.

    Args:
      betas: T values in (0, 1]; only the last may be 1 (zero terminal SNR).

    Raises:
      ConfigError: a value out of range, or not a one-dimensional table.

    Source: Ho et al. 2020, section 2 (arXiv 2006.11239).
    """
    table = LogSnrTable.from_betas(np.asarray(betas, np.float64))
    return Schedule(name, "vp", table.log_snr, table.inverse, table.num_steps, exact_drop=table.drop)


@part("schedule", "linear")
def linear(num_steps: Count = 1000, beta_start: Positive = 1e-4, beta_end: Positive = 0.02) -> Schedule:
    """Space betas evenly; for T other than 1000 both ends are scaled by 1000 / T, so that the last alpha stays.

    Source: Ho et al. 2020, section 4 (arXiv 2006.11239).

    >>> float(linear().alpha_sigma(1.0)[0] ** 2).__format__(".4e")
    '4.0358e-05'
    """
    scale = 1000 / num_steps
    return from_betas(np.linspace(scale * beta_start, scale * beta_end, num_steps), "linear")


def _squared_linspace(num_steps: int, beta_start: Positive, beta_end: Positive, name: str) -> Schedule:
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2, name)


@part("schedule", "scaled_linear")
def scaled_linear(num_steps: Count = 1000, beta_start: Positive = 0.00085, beta_end: Positive = 0.012) -> Schedule:
    """Space the square roots of betas evenly, with the ends of latent diffusion (arXiv 2112.10752)."""
    return _squared_linspace(num_steps, beta_start, beta_end, "scaled_linear")


@part("schedule", "quadratic")
def quadratic(num_steps: Count = 1000, beta_start: Positive = 1e-4, beta_end: Positive = 0.02) -> Schedule:
    """Space the square roots of betas evenly, with the ends of DDPM (arXiv 2006.11239)."""
    return _squared_linspace(num_steps, beta_start, beta_end, "quadratic")


@part("schedule", "constant")
def constant(num_steps: Count = 1000, beta: Fraction = 0.02) -> Schedule:
    """Use one beta throughout, as an option of DDPM's published code does (arXiv 2006.11239)."""
    return from_betas(np.full(num_steps, beta), "constant")


@part("schedule", "warmup")
def warmup(
    num_steps: Count = 1000, fraction: Fraction = 0.1, beta_start: Positive = 1e-4, beta_end: Positive = 0.02
) -> Schedule:
    """Space betas evenly over the first steps, then keep them: options of DDPM's published code (arXiv 2006.11239).

    Args:
      fraction: of the steps that rise: 0.1 is its "warmup10", 0.5 its "warmup50".
    """
    betas, rising = np.full(num_steps, beta_end), int(num_steps * fraction)
    betas[:rising] = np.linspace(beta_start, beta_end, rising)
    return from_betas(betas, "warmup")


@part("schedule", "jsd")
def jsd(num_steps: Count = 1000) -> Schedule:
    """Take betas 1/T, 1/(T - 1), ..., 1: alpha_bar falls evenly to zero SNR (Sohl-Dickstein et al. 2015, arXiv 1503.03585).

    An option of DDPM's published code. As it ends in zero SNR, noise cannot be predicted: "x0", "v" and "mu" can.
    """
    return from_betas(1 / np.arange(num_steps, 0, -1), "jsd")


@part("schedule", "cosine")
def cosine(num_steps: Count = 1000, offset: NonNegative = 0.008, max_beta: Fraction = 0.999) -> Schedule:
    """Return the discrete cosine schedule with capped betas (Nichol & Dhariwal 2021, section 3.2, arXiv 2102.09672)."""
    u = np.arange(num_steps + 1) / num_steps
    f = np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta), "cosine")


@part("schedule", "zero_terminal_snr")
def zero_terminal_snr(schedule: Any = "linear") -> Schedule:
    """Return a chain whose sqrt(alpha_bar) is shifted and scaled to end in 0 and to keep its first value.

    Args:
      schedule: the chain to rescale (a `Schedule`, or its configuration).

    Raises:
      ConfigError: a continuous schedule.

    Source: Lin et al. 2024, section 3.1 (arXiv 2305.08891).
    """
    inner: Schedule = build("schedule", schedule)
    if inner.num_steps is None:
        raise ConfigError(f"schedule 'zero_terminal_snr' rescales chains, but {inner.name!r} is continuous")
    alpha = inner.alpha_sigma(np.arange(1, inner.num_steps + 1) / inner.num_steps)[0]
    alpha_bar = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    return from_betas(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]), f"zero-terminal {inner.name}")


def _at_data(xp: ModuleType, t: Any, log_snr: Any) -> Any:
    """Log-SNR is +inf at t = 0, so that the last step of a sampler returns exactly the predicted data."""
    return xp.where(t <= 0, xp.inf, log_snr)


@part("schedule", "cosine_continuous")
def cosine_continuous(shift: float = 0.0, limit: Positive = 20.0) -> Schedule:
    """Take alpha = cos, sigma = sin of an angle linear in t, with log-SNR running from `limit` to `-limit`.

    Args:
      shift: added to the log-SNR; 2 * ln(64 / size) keeps the noise of large images as destructive as at 64 pixels
        (Hoogeboom et al. 2023, arXiv 2301.11093).
      limit: the truncation |log-SNR| <= limit, before the shift (Ho & Salimans 2022, section 3, arXiv 2207.12598).
    """
    low = math.atan(math.exp(-limit / 2))
    span = math.atan(math.exp(limit / 2)) - low

    def log_snr(t: Any) -> Any:
        xp, _, t = namespace(t)
        # tan(pi/2 - u) = 1 / tan(u) keeps float32 digits in the noisier half.
        angle = low + span * xp.clip(t, 0.0, 1.0)
        mirrored = low + span * (1.0 - xp.clip(t, 0.0, 1.0))
        value = xp.where(
            t < 0.5,
            -2 * xp.log(xp.tan(xp.minimum(angle, 0.8))),
            2 * xp.log(xp.tan(xp.minimum(mirrored, 0.8))),
        )
        return _at_data(xp, t, value + shift)

    def inverse(log_snr: Any) -> Any:
        xp, _, log_snr = namespace(log_snr)
        return xp.clip((xp.arctan(xp.exp(-0.5 * (log_snr - shift))) - low) / span, 0.0, 1.0)

    def drop(s: Any, t: Any) -> Any:
        # tan(b) / tan(a) = 1 + sin(b - a) / (sin(a) cos(b)), and the cosine is the sine of the mirrored angle.
        xp, s, t = pair(s, t)
        product = xp.sin(low + span * s) * xp.sin(low + span * (1.0 - t))
        return _at_data(xp, s, 2 * xp.log1p(xp.sin(span * (t - s)) / product))

    return Schedule("cosine_continuous", "vp", log_snr, inverse, exact_drop=drop)


@part("schedule", "edm")
def edm(sigma_min: Positive = 0.002, sigma_max: Positive = 80.0, rho: Positive = 7.0) -> Schedule:
    """Let the variance explode, sigma = sigma_max * t^rho: data at t = 0, and Karras' spacing is near uniform in t.

    Args:
      sigma_min: the smallest level that time samplers draw (the schedule itself reaches 0).
      sigma_max: the standard deviation of the noise at t = 1, in units of the data.

    Source: Karras et al. 2022 (arXiv 2206.00364).
    """
    if not sigma_min < sigma_max:
        raise ConfigError(f"schedule 'edm': needs sigma_min < sigma_max, got {sigma_min} and {sigma_max}")

    def log_snr(t: Any) -> Any:
        xp, _, t = namespace(t)
        safe = xp.where(t > 0, t, 1.0)
        return _at_data(xp, t, -2 * (math.log(sigma_max) + rho * xp.log(safe)))

    def inverse(log_snr: Any) -> Any:
        xp, _, log_snr = namespace(log_snr)
        return xp.clip(xp.exp((-0.5 * log_snr - math.log(sigma_max)) / rho), 0.0, 1.0)

    def drop(s: Any, t: Any) -> Any:
        return 2 * rho * log_ratio(*pair(s, t))

    return Schedule("edm", "ve", log_snr, inverse, t_min=(sigma_min / sigma_max) ** (1 / rho), exact_drop=drop)


_EARLIEST_OF_SDE = 1e-3
"""The earliest time that samplers of the VP SDE visit, in the score SDEs and in EDM."""


def _check_vp_sde(beta_min: float, beta_max: float) -> None:
    """Raise a `ConfigError` unless the log-SNR is finite and falls from t = 1e-3 on: -ln alpha^2 is positive and rises."""
    slope = beta_max - beta_min
    least, steepest = min(slope * _EARLIEST_OF_SDE, slope) + beta_min, max(slope * _EARLIEST_OF_SDE, slope) + beta_min
    start = _EARLIEST_OF_SDE * (0.5 * slope * _EARLIEST_OF_SDE + beta_min)
    if not (math.isfinite(slope) and start > 0 and least >= 0 and steepest > 0):
        raise ConfigError(
            f"schedule 'vp_sde': with beta_min {beta_min:g} and beta_max {beta_max:g} the log-SNR is not finite and falling "
            "on [0.001, 1]: it needs beta_max >= 0 and beta_min above -0.0005 * beta_max (published are 0.1 and 20)"
        )


@part("schedule", "vp_sde")
def vp_sde(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Return the variance-preserving SDE: ln alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2.

    Args:
      beta_min: may be a little below 0, as in EDM's fit to levels from 0.002 to 80 (`edm_design.vp_constants`): what comes
        before t = -2 beta_min / (beta_max - beta_min), earlier than 0.001, is data.

    Raises:
      ConfigError: constants with which the log-SNR is not finite, or does not fall, on [0.001, 1].

    Source: Song et al. 2021, appendix C (arXiv 2011.13456); the fit: Karras et al. 2022, appendix C.1 (arXiv 2206.00364).
    """
    _check_vp_sde(beta_min, beta_max)
    slope = beta_max - beta_min

    def exponents(xp: ModuleType, t: Any) -> tuple[Any, Any]:
        """-ln alpha^2, 1 at data, and whether a time is data."""
        exponent = t * (0.5 * slope * t + beta_min)
        return xp.where(exponent > 0, exponent, 1.0), exponent <= 0

    def log_snr(t: Any) -> Any:
        xp, _, t = namespace(t)
        exponent, at_data = exponents(xp, t)
        return xp.where(at_data, xp.inf, -exponent - xp.log(-xp.expm1(-exponent)))

    def inverse(log_snr: Any) -> Any:
        xp, _, log_snr = namespace(log_snr)
        exponent = xp.logaddexp(0.0, -log_snr)
        root = xp.sqrt(xp.maximum(beta_min**2 + 2 * slope * exponent, 0.0))
        t = 2 * exponent / (beta_min + root) if beta_min > 0 else (root - beta_min) / slope
        return xp.where(exponent > 0, xp.clip(t, 0.0, 1.0), 0.0)

    def drop(s: Any, t: Any) -> Any:
        # (e^b - 1) / (e^a - 1) = e^(b - a) (1 + (1 - e^(a - b)) / (e^a - 1)), for exponents a < b.
        xp, s, t = pair(s, t)
        exponent, at_data = exponents(xp, s)
        more = (t - s) * (0.5 * slope * (t + s) + beta_min)
        return xp.where(at_data, xp.inf, more + xp.log1p(-xp.expm1(-more) / xp.expm1(exponent)))

    return Schedule("vp_sde", "vp", log_snr, inverse, t_min=0.0 if beta_min >= 0 else _EARLIEST_OF_SDE, exact_drop=drop)


@part("schedule", "straight_line")
def straight_line(shift: Positive = 1.0) -> Schedule:
    """Match flows: x_t = (1 - t) x0 + t eps, with t replaced by shift * t / (1 + (shift - 1) t).

    Args:
      shift: above 1 spends more of [0, 1] on noise, for large images (Esser et al. 2024, arXiv 2403.03206).

    Source: Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003).
    """
    offset = 2 * math.log(shift)  # the warped time is the same line, its log-SNR lower by 2 ln(shift)

    def log_snr(t: Any) -> Any:
        xp, _, t = namespace(t)
        inside = (t > 0) & (t < 1)
        safe = xp.where(inside, t, 0.5)
        value = 2 * (xp.log1p(-safe) - xp.log(safe)) - offset
        return _at_data(xp, t, xp.where(t >= 1, -xp.inf, value))

    def inverse(log_snr: Any) -> Any:
        _, sigmoid, log_snr = namespace(log_snr)
        return sigmoid(-0.5 * (log_snr + offset))

    def drop(s: Any, t: Any) -> Any:
        xp, s, t = pair(s, t)
        lost = xp.where(t < 1, xp.log1p((t - s) / xp.where(t < 1, 1 - t, 1.0)), xp.inf)  # log((1 - s) / (1 - t))
        return 2 * (log_ratio(xp, s, t) + lost)

    return Schedule("straight_line", "linear", log_snr, inverse, exact_drop=drop)


@part("schedule", "shifted")
def shifted(schedule: Any, shift: float | None = None, size: Count | None = None, base: Count = 64) -> Schedule:
    """Move the log-SNR of any schedule, as larger images need.

    Args:
      schedule: the schedule to shift (a `Schedule`, or its configuration).
      shift: what is added to the log-SNR; or give `size`, and it is 2 * ln(base / size).

    Source: Hoogeboom et al. 2023, section 3.1 (arXiv 2301.11093).
    """
    if (shift is None) == (size is None):
        raise ConfigError("schedule 'shifted' needs one of 'shift' (log-SNR) and 'size' (pixels)")
    inner: Schedule = build("schedule", schedule)
    delta = shift if shift is not None else 2 * math.log(base / size)
    return dataclasses.replace(
        inner,
        name=f"shifted {inner.name}",
        log_snr=lambda t: inner.log_snr(t) + delta,
        inverse=lambda log_snr: inner.inverse(log_snr - delta),
    )
