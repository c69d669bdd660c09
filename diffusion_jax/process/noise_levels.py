"""What networks are told of the noise: functions of the noise level alone, so that any schedule can be sampled.

gamma is the share of the data in the variance of a variance-preserving process, alpha^2 (alpha-bar of a chain).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.edm_design import iddpm_levels
from diffusion_jax.process.process import Process
from diffusion_jax.process.schedules import alpha_sigma_from_log_snr, vp_sde
from diffusion_jax.registry import build, part
from diffusion_jax.values import NonNegative, Positive, Range

NoiseInput = Callable[[Process, jax.Array], jax.Array]

_LEVELS = ("log_snr", "log_sigma")


@part("noise_input", "gamma")
def gamma(scale: Positive = 1000.0) -> NoiseInput:
    """The network is told scale * gamma; the scale is that of the timesteps for which embeddings are made.

    Source: Saharia et al. 2021, section 2.1 (arXiv 2104.07636); the scale is ours, none is published.
    """
    return _Level(scale, 2)


@part("noise_input", "sqrt_gamma")
def sqrt_gamma(scale: Positive = 1000.0) -> NoiseInput:
    """The network is told scale * sqrt(gamma), as published ports of SR3 and Palette do (after WaveGrad, 2009.00713)."""
    return _Level(scale, 1)


@dataclasses.dataclass(frozen=True)
class _Level:
    """A function of the level alone, whatever the schedule."""

    scale: float
    power: int

    of_level = True

    def __call__(self, process: Process, t: jax.Array) -> jax.Array:
        return self.scale * alpha_sigma_from_log_snr(process.log_snr(t), "vp")[0] ** self.power


def on_schedule(process: Process, schedule: Any) -> Process:
    """Return the process on another schedule: the same network, asked at other levels.

    Args:
      schedule: a `Schedule`, its name or its configuration, such as {"name": "betas", "betas": [...]}.

    Raises:
      ConfigError: the network is told steps of the chain that it was trained on, which mean other levels in another one;
        or a schedule of another family.

    Source: Saharia et al. 2021, section 2.4 (arXiv 2104.07636); Chen et al. 2021 (arXiv 2009.00713).
    """
    told = process.noise_input
    if told not in _LEVELS and not getattr(told, "of_level", False):
        shown = told if isinstance(told, str) else getattr(told, "__name__", type(told).__name__)
        raise ConfigError(
            f"sampling: another schedule than the trained one needs a network that is told the noise level, but this one is "
            f"told {shown!r}: leave sampling.schedule out, or train with noise_input 'sqrt_gamma', 'gamma' or 'log_snr'"
        )
    built = build("schedule", schedule)
    if built.family != process.schedule.family:
        raise ConfigError(
            f"sampling: the schedule {built.name!r} is of the family {built.family!r}, the trained one of "
            f"{process.schedule.family!r}: choose one of the same family"
        )
    return dataclasses.replace(process, schedule=built)


# The columns of EDM's design space -------------------------------------------------------------------------------------

# (process, times [B]) -> the numbers [B] that tell the network the noise level. All are functions of the level alone,
# whatever the schedule, and values: equal settings compare equal, as a student's must with its teacher's.


@part("noise_input", "vp_time")
@dataclasses.dataclass(frozen=True)
class VpTime:
    """c_noise = (M - 1) times the time at which the VP SDE has this level."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    num_levels: Annotated[int, Range(2)] = 1000

    of_level = True

    def __post_init__(self) -> None:
        vp_sde(self.beta_min, self.beta_max)  # bad values fail here

    def __call__(self, process: Process, t: jax.Array) -> jax.Array:
        return (self.num_levels - 1) * vp_sde(self.beta_min, self.beta_max).inverse(process.log_snr(t))


@part("noise_input", "log_half_sigma")
@dataclasses.dataclass(frozen=True)
class LogHalfSigma:
    """c_noise = ln(sigma / 2): the column VE, whose network sees it through Fourier features."""

    of_level = True

    def __call__(self, process: Process, t: jax.Array) -> jax.Array:
        return -0.5 * process.log_snr(t) - math.log(2.0)


@part("noise_input", "nearest_level")
@dataclasses.dataclass(frozen=True)
class NearestLevel:
    """c_noise = M - 1 - argmin_j |u_j - sigma|: the step of improved DDPM's chain with the nearest level."""

    num_levels: Annotated[int, Range(2)] = 1000
    c1: Positive = 0.001
    c2: NonNegative = 0.008

    of_level = True

    def __call__(self, process: Process, t: jax.Array) -> jax.Array:
        reference = iddpm_levels(self.num_levels, self.c1, self.c2)
        return jnp.round(reference.inverse(process.log_snr(t)) * self.num_levels) - 1
