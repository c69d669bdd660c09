"""Generation whose loss is weighted by how uncertain the network says it is, as EDM2 trains."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import weightings
from diffusion_jax.registry import build, register
from diffusion_jax.systems.base import Batch
from diffusion_jax.systems.generation import Generation


@register("system", "uncertain_generation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UncertainGeneration(Generation):
    """`Generation` with the loss (lambda / exp(u)) err^2 + u, where u, a function of the noise level, is learned.

    At its optimum exp(u) is the mean of lambda err^2 at that level, so every level contributes gradients of the same
    size. u takes no part in sampling. The network must have `log_variance(params, noise)`, as "edm2" does.

    Raises:
      ConfigError: a network without an uncertainty, or an objective that is not a weighted squared error.

    Source: Karras et al. 2024, section 2.2 and appendix B (arXiv 2312.02696).
    """

    name = "uncertain_generation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.network, "log_variance"):
            raise ConfigError(f"system {self.name!r} needs a network that learns its uncertainty, such as 'edm2'")
        biased = hasattr(self.times, "probabilities")  # importance sampling compensates what the uncertainty already does
        if self.vlb_weight or self.process.learns_variance or biased:
            raise ConfigError(f"system {self.name!r} takes a fixed variance, vlb_weight 0 and unbiased times")
        if build("weighting", self.weighting) is weightings.bound_only:
            raise ConfigError(
                f"system {self.name!r} weights a squared error, of which the weighting 'vlb' has none: use 'edm', or 'simple'"
            )
        if self.distance == "l1":
            raise ConfigError(f"system {self.name!r} learns the variance of a squared error: use the distance 'l2' or 'l2_sum'")

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array, *, train: bool = True) -> tuple:
        """As `Diffusion.loss`, weighted by the uncertainty; the loss may be negative, "per_example" is unweighted."""
        _, (state, seen) = super().loss(params, state, batch, key, train=train)
        t = self.process.schedule.inverse(seen["log_snr"])
        weight = weightings.in_target_space(build("weighting", self.weighting), self.process, t)
        u = self.network.log_variance(params, self.process.noise_level(t))
        return jnp.mean(weight * seen["per_example"] * jnp.exp(-u) + u), (state, seen)
