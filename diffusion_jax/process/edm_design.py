"""The design space of Karras et al. 2022: what its four columns train with, each part by name, to be mixed freely.

Levels are sigma / alpha, the paper's sigma: the standard deviation of the noise on unscaled data. With y = x_t / alpha a
network F is fed c_in y and c_noise, and denoises as D = c_skip y + c_out F. What a column does not define here is in the
other files: the schedules "vp_sde" and "edm", the prediction "edm", the noise input "log_sigma", the times "log_normal",
the weightings "snr" (1 / sigma^2) and "edm".

Source: Karras et al. 2022, table 1 and appendix C (arXiv 2206.00364).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process.schedules import Schedule, namespace, vp_sde
from diffusion_jax.process.tables import LogSnrTable, log_ratio, pair
from diffusion_jax.process.time_samplers import Draw, Stateless
from diffusion_jax.process.types import Corruption
from diffusion_jax.registry import part
from diffusion_jax.values import NonNegative, Positive, Range

_COLUMNS: dict[str, dict[str, Any]] = {
    "vp": {
        "process": {"schedule": {"name": "vp_sde"}, "prediction": {"name": "edm_vp"}, "noise_input": {"name": "vp_time"}},
        "times": {"name": "vp_uniform"},
        "weighting": "snr",
    },
    "ve": {
        "process": {"schedule": {"name": "ve"}, "prediction": {"name": "edm_ve"}, "noise_input": {"name": "log_half_sigma"}},
        "times": {"name": "log_uniform"},
        "weighting": "snr",
    },
    "iddpm": {
        "process": {
            "schedule": {"name": "iddpm_levels"},
            "prediction": {"name": "edm_vp"},
            "noise_input": {"name": "nearest_level"},
        },
        "times": {"name": "uniform"},
        "weighting": "snr",
    },
    "edm": {
        "process": {"schedule": {"name": "edm"}, "prediction": {"name": "edm"}, "noise_input": "log_sigma"},
        "times": {"name": "log_normal"},
        "weighting": "edm",
    },
}

COLUMNS = tuple(_COLUMNS)


def column(name: str) -> dict[str, Any]:
    """Return what a column trains with, as fields of a system: "process", "times" and "weighting", to be changed at will.

    Args:
      name: "vp" and "ve" (the score SDEs), "iddpm" (improved DDPM, sampled with DDIM) or "edm".

    >>> column("edm")["times"]
    {'name': 'log_normal'}
    """
    check_choice("the design table: column", name, COLUMNS)
    parts = _COLUMNS[name]
    process = {key: dict(part) if isinstance(part, dict) else part for key, part in parts["process"].items()}
    return {"process": process, "times": dict(parts["times"]), "weighting": parts["weighting"]}


# Schedules ------------------------------------------------------------------------------------------------------------


@part("schedule", "ve")
def ve(sigma_min: Positive = 0.02, sigma_max: Positive = 100.0) -> Schedule:
    """Return the variance-exploding SDE: sigma = sigma_max sqrt(t), in which the variance grows evenly.

    Args:
      sigma_min: the smallest level that time samplers draw (the schedule itself reaches 0).

    Source: Song et al. 2021 (arXiv 2011.13456) as in Karras et al. 2022, table 1.
    """
    if not sigma_min < sigma_max:
        raise ConfigError(f"schedule 've': needs sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    top = 2 * math.log(sigma_max)

    def log_snr(t: Any) -> Any:
        xp, _, t = namespace(t)
        return xp.where(t <= 0, xp.inf, -top - xp.log(xp.where(t > 0, t, 1.0)))

    def inverse(log_snr: Any) -> Any:
        xp, _, log_snr = namespace(log_snr)
        return xp.clip(xp.exp(-log_snr - top), 0.0, 1.0)

    def drop(s: Any, t: Any) -> Any:
        return log_ratio(*pair(s, t))

    return Schedule("ve", "ve", log_snr, inverse, t_min=(sigma_min / sigma_max) ** 2, exact_drop=drop)


def vp_constants(sigma_min: float = 0.002, sigma_max: float = 80.0, t_min: float = 1e-3) -> dict[str, float]:
    """Return {"beta_min", "beta_max"} of the VP SDE that has the level sigma_min at t_min and sigma_max at t = 1.

    Raises:
      ConfigError: levels or times out of order.

    Source: Karras et al. 2022, appendix C.1 and the published code's fit (arXiv 2206.00364).

    >>> {name: round(value, 4) for name, value in vp_constants().items()}
    {'beta_min': -0.0048, 'beta_max': 17.5332}
    """
    if not (0 < sigma_min < sigma_max and 0 < t_min < 1):
        raise ConfigError(
            "the VP SDE's constants need 0 < sigma_min < sigma_max and 0 < t_min < 1, got "
            f"{sigma_min:g}, {sigma_max:g} and {t_min:g}"
        )
    early, late = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    slope = 2 * (early / t_min - late) / (t_min - 1)
    return {"beta_min": late - slope / 2, "beta_max": late + slope / 2}


@functools.cache
def iddpm_table(num_levels: int = 1000, c1: float = 0.001, c2: float = 0.008) -> np.ndarray:
    """Return the levels u_0 > u_1 > ... > u_M = 0 of improved DDPM, float64 [M + 1].

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, c1) - 1), with abar_j = sin^2(pi/2 j / (M (c2 + 1))).

    >>> [round(float(u), 4) for u in iddpm_table()[[8, 999]]]
    [80.2037, 0.0064]
    """
    j = np.arange(num_levels + 1)
    alpha_bar = np.sin(0.5 * np.pi * j / (num_levels * (c2 + 1))) ** 2
    square = np.zeros(num_levels + 1)
    for k in range(num_levels, 0, -1):
        square[k - 1] = (square[k] + 1) / max(alpha_bar[k - 1] / alpha_bar[k], c1) - 1
    return np.sqrt(square)


@part("schedule", "iddpm_levels")
def iddpm_levels(
    num_levels: Annotated[int, Range(2)] = 1000,
    c1: Positive = 0.001,
    c2: NonNegative = 0.008,
    family: Literal["vp", "ve"] = "ve",
    rounded: bool = True,
) -> Schedule:
    """Return a chain of the M levels of improved DDPM: its step i (from 0) is the paper's u_{M-1-i}.

    Args:
      family: "ve" as in the table (alpha = 1), or "vp".
      rounded: `inverse` gives the step of the nearest level, in sigma, and data (t = 0, the paper's u_M = 0) below half the
        lowest. Grids, and samplers that raise the noise (churn), go through it, so that a network trained on these levels is
        asked for no others.
    """
    levels = iddpm_table(num_levels, c1, c2)[-2::-1]
    table = LogSnrTable(-2 * np.log(levels))
    middles = 0.5 * (levels + np.append(0.0, levels[:-1]))
    inverse = functools.partial(_nearest, bounds=-2 * np.log(middles)) if rounded else table.inverse
    return Schedule("iddpm_levels", family, table.log_snr, inverse, table.num_steps, exact_drop=table.drop)


def _nearest(log_snr: Any, bounds: np.ndarray) -> Any:
    """The time of the nearest of the levels, data among them, that `bounds` (decreasing log-SNR) separate."""
    xp, _, log_snr = namespace(log_snr)
    index = xp.searchsorted(xp.asarray(-bounds, log_snr.dtype), -log_snr)
    return index.astype(log_snr.dtype) / len(bounds)


# Predictions ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Noise:
    """c_skip = 1: the network predicts the noise, up to its sign; c_out = -sign * sigma."""

    needs_signal = True
    sign = 1.0

    def target(self, x0, eps, alpha, sigma):
        return self.sign * eps

    def decode(self, output, x_t, alpha, sigma):
        eps = self.sign * output
        return (x_t - sigma * eps) / alpha, eps

    def x0_error_scale(self, alpha, sigma):
        return alpha / sigma


@part("prediction", "edm_vp")
@dataclasses.dataclass(frozen=True)
class EdmVp(_Noise):
    """The columns VP and improved DDPM: c_skip 1, c_out -sigma, c_in 1 / sqrt(sigma^2 + 1).

    On variance-preserving schedules it is "eps"; on others its input is scaled as if they were.
    """

    name = "edm_vp"

    def input_scale(self, alpha, sigma):
        return 1 / jnp.hypot(alpha, sigma)


@part("prediction", "edm_ve")
@dataclasses.dataclass(frozen=True)
class EdmVe(_Noise):
    """The column VE: c_skip 1, c_out sigma, c_in 1. The network predicts -eps, as NCSN++ does."""

    name = "edm_ve"
    sign = -1.0

    def input_scale(self, alpha, sigma):
        return 1 / alpha


# How training draws levels --------------------------------------------------------------------------------------------


def _times(process: Corruption, log_snr: jax.Array) -> Draw:
    """Times of levels; the schedule's own range bounds them."""
    t = process.schedule.inverse(log_snr)
    if process.num_steps:
        t = jnp.clip(jnp.round(t * process.num_steps), 1, process.num_steps) / process.num_steps
    return jnp.clip(t, process.schedule.t_min, 1.0), jnp.ones(t.shape)


@part("times", "log_uniform")
@dataclasses.dataclass(frozen=True)
class LogUniform(Stateless):
    """ln sigma uniform between two levels: the column VE."""

    sigma_min: Positive = 0.02
    sigma_max: Positive = 100.0

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise ConfigError(f"times 'log_uniform': needs sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return _times(process, -2 * jax.random.uniform(key, (count,), minval=low, maxval=high))


@part("times", "vp_uniform")
@dataclasses.dataclass(frozen=True)
class VpUniform(Stateless):
    """Levels of the VP SDE at times uniform in [t_min, 1]: the column VP."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 1e-5

    def __post_init__(self) -> None:
        vp_sde(self.beta_min, self.beta_max)  # bad values fail here

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        sde, t = vp_sde(self.beta_min, self.beta_max), 1.0 - (1.0 - self.t_min) * jax.random.uniform(key, (count,))
        return _times(process, sde.log_snr(jnp.maximum(t, sde.t_min)))


@part("times", "level_uniform")
@dataclasses.dataclass(frozen=True)
class LevelUniform(Stateless):
    """The levels u_0 .. u_{M-1} of improved DDPM, equally often: its column, on any schedule."""

    num_levels: Annotated[int, Range(2)] = 1000
    c1: Positive = 0.001
    c2: NonNegative = 0.008

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        levels = jnp.asarray(iddpm_table(self.num_levels, self.c1, self.c2)[:-1], jnp.float32)
        j = jax.random.randint(key, (count,), 0, self.num_levels)
        return _times(process, -2 * jnp.log(levels[j]))
