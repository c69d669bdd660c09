"""The objective of bits and categories: the variational bound, and D3PM's auxiliary loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.discrete import Categorical, bound_loss
from diffusion_jax.registry import build, part
from diffusion_jax.rng import named
from diffusion_jax.systems.codecs import EncodesCategories
from diffusion_jax.systems.denoising import Example, Objective, Parts
from diffusion_jax.values import Count, NonNegative


@part("objective", "bound")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound(Objective):
    """The bound on the likelihood of categories in bits per dimension, T times one of its terms.

    Args:
      steps: T of a process in continuous time; a chain has its own.
      aux_weight: of the cross-entropy of x0 added to the bound, which counts all noise levels the same; 0 is the bound alone.
      times: the time sampler of training.

    Sources: Sohl-Dickstein et al. 2015 (arXiv 1503.03585); Austin et al. 2021, section 3.4 (arXiv 2107.03006).
    """

    steps: Count = 1000
    aux_weight: NonNegative = 0.0
    times: Any = "low_discrepancy"

    name = "bound"

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", build("times", self.times))

    def check(self, system: Parts) -> None:
        """Raise a `ConfigError` unless the process and the codec are of the same categories."""
        process, codec = system.process, system.codec
        if not isinstance(process, Categorical):
            raise ConfigError(
                "objective 'bound' is of the processes 'binomial' and 'categorical': for Gaussian noise use 'denoising', with "
                "the weighting 'vlb' for its bound"
            )
        if not isinstance(codec, EncodesCategories) or codec.num_values != process.num_values:
            raise ConfigError(
                f"the process has {process.num_values} categories, which the codec {type(codec).__name__} does not encode: use "
                "system.codec='binary' for 2"
            )

    def init_state(self, system: Parts) -> Any:
        """Make the time sampler's history; empty for most."""
        return self.times.init_state(system.process)

    def loss(self, system: Parts, params: Any, state: Any, example: Example, key: jax.Array, *, step, frozen, train) -> tuple:
        """Compute the bound, and the auxiliary loss, of a batch."""
        value, output = bound_loss(
            system.process, system.network.apply, params, example.x0, named(key, "denoising"), cond=example.cond,
            times=self.times, steps=self.steps, aux_weight=self.aux_weight, sampler_state=state,
            apply_kwargs={"train": train, "rngs": {"dropout": named(key, "dropout")}},
        )  # fmt: skip
        return value, {"state": output.sampler_state, "per_example": output.per_example, "log_snr": output.log_snr}
