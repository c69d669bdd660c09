"""Networks that are told the noise level itself: gamma, drawn continuously in training, from any schedule in sampling.

gamma is the share of the data in the variance of a variance-preserving process, alpha^2 (alpha-bar of a chain).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.schedules import alpha_sigma_from_log_snr
from diffusion_jax.process.time_samplers import Draw, Stateless
from diffusion_jax.registry import build, register

if TYPE_CHECKING:
    from diffusion_jax.process.process import Process

NoiseInput = Callable[["Process", jax.Array], jax.Array]

_LEVELS = ("log_snr", "log_sigma")


@register("noise_input", "gamma")
def gamma(scale: float = 1000.0) -> NoiseInput:
    """The network is told scale * gamma; the scale is that of the timesteps for which embeddings are made.

    Source: Saharia et al. 2021, section 2.1 (arXiv 2104.07636); the scale is ours, none is published.
    """
    return _Level(scale, 2)


@register("noise_input", "sqrt_gamma")
def sqrt_gamma(scale: float = 1000.0) -> NoiseInput:
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
    """The process on another schedule: the same network, asked at other levels.

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


@register("times", "piecewise_uniform")
@dataclasses.dataclass(frozen=True)
class PiecewiseUniform(Stateless):
    """A step i of the chain drawn uniformly, then a level uniform between its gamma and that of the step before, 1 at first.

    Args:
      of: "sqrt_gamma" draws uniformly in the square root, as published ports do; "gamma" as the paper has it.

    Levels before a hundredth of the first step are not drawn: in float32 there would be no noise to predict.

    Source: Saharia et al. 2021, section 2.1 (arXiv 2104.07636); Chen et al. 2021, algorithm 1 (arXiv 2009.00713).
    """

    of: str = "sqrt_gamma"

    def __post_init__(self) -> None:
        if self.of not in ("gamma", "sqrt_gamma"):
            raise ConfigError(f"times 'piecewise_uniform': of must be 'gamma' or 'sqrt_gamma', got {self.of!r}")

    def sample(self, process: Process, key: jax.Array, count: int, state: Any) -> Draw:
        steps = process.num_steps
        if steps is None or process.schedule.family != "vp":
            raise ConfigError(
                "times 'piecewise_uniform' needs a variance-preserving chain, such as the schedule 'betas' or 'linear'; "
                f"{process.schedule.name!r} is none"
            )
        for_step, within = jax.random.split(key)
        later = jax.random.randint(for_step, (count,), 1, steps + 1)
        u = 1.0 - jax.random.uniform(within, (count,))  # in (0, 1]: 1 is the later, noisier end
        u = jnp.where(later == 1, jnp.maximum(u, 0.01), u)
        log_snr = self._between(process.log_snr((later - 1) / steps), process.log_snr(later / steps), u)
        return process.schedule.inverse(log_snr), jnp.ones(count)

    def _between(self, early: jax.Array, late: jax.Array, u: jax.Array) -> jax.Array:
        """log-SNR where gamma, or its root, is the mean of two levels' with weight u on the late one.

        The noise variance is interpolated as well as gamma: near data, and near noise, only one of them has digits left.
        """
        (a, sigma_a), (b, sigma_b) = (alpha_sigma_from_log_snr(level, "vp") for level in (early, late))
        if self.of == "gamma":
            kept, noise = (1 - u) * a**2 + u * b**2, (1 - u) * sigma_a**2 + u * sigma_b**2
        else:
            root = (1 - u) * a + u * b
            # 1 - root = (1 - u)(1 - a) + u (1 - b), and 1 - a = sigma_a^2 / (1 + a).
            lost = (1 - u) * sigma_a**2 / (1 + a) + u * sigma_b**2 / (1 + b)
            kept, noise = root**2, lost * (1 + root)
        return jnp.log(kept) - jnp.log(noise)
