"""The contract of an objective, and the objective of most systems: denoising."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models import Network
from diffusion_jax.process import Process, losses, weightings
from diffusion_jax.process.process import gaussian
from diffusion_jax.process.time_samplers import Importance
from diffusion_jax.registry import build, part
from diffusion_jax.rng import named
from diffusion_jax.spec import Spec
from diffusion_jax.systems.base import System
from diffusion_jax.systems.codecs import Codec, EncodesCategories, range_of_levels
from diffusion_jax.systems.conditioners import Conditioner, Known
from diffusion_jax.values import NonNegative


class Example(NamedTuple):
    """A training batch as objectives see it.

    Attributes:
      x0: encoded data, float32 [B, ...].
      cond: the network's conditioning, of which some was dropped.
      null: the same, without what guidance acts on.
      known: which part of the data is known, or None.
    """

    x0: jax.Array
    cond: dict[str, Any]
    null: dict[str, Any]
    known: Known | None


class Parts(Protocol):
    """What an objective knows of its system."""

    spec: Spec
    process: Process
    network: Network
    conditioners: Sequence[Conditioner]
    codec: Codec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a `Diffusion` system minimises. Kinds override what differs from these defaults.

    Class attributes:
      name: in the registry, under the kind "objective".
      needs: names in `frozen` that the loss reads.
    """

    name: ClassVar[str] = "objective"
    needs: ClassVar[tuple[str, ...]] = ()

    def check(self, system: Parts) -> None:
        """Raise a `ConfigError` if the system's parts do not suit the objective; by default, the process must be Gaussian."""
        gaussian(system.process, f"objective {self.name!r}", "the objective 'bound'")
        if isinstance(system.codec, EncodesCategories):
            raise ConfigError(
                f"objective {self.name!r} adds noise to real numbers, but the codec {type(system.codec).__name__} makes "
                "categories: use the process 'binomial' or 'categorical' with the objective 'bound'"
            )

    def check_frozen(self, system: Parts, name: str, other: System) -> None:
        """Raise a `ConfigError` if another system's run cannot serve as the name in `needs`."""

    def start(self, frozen: Mapping[str, Any]) -> Any:
        """Return the first parameters by group, made of frozen ones; None for fresh ones."""
        return None

    def check_steps(self, steps: int) -> None:
        """Warn where the objective plans another number of training steps."""

    def init_state(self, system: Parts) -> Any:
        """Make what is carried from step to step."""
        return {}

    def loss(
        self, system: Parts, params: Any, state: Any, example: Example, key: jax.Array, *,
        step: jax.Array, frozen: Mapping[str, Any], train: bool,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        """Compute (value, aux) as `System.losses` has them, for the parameters of the network."""
        raise TypeError(f"the objective {self.name!r} has no loss")


@runtime_checkable
class LearnsUncertainty(Protocol):
    """A network that learns how uncertain it is at a noise level, as "edm2" does."""

    def log_variance(self, params: Any, noise: jax.Array) -> jax.Array:
        """Return u [B] of noise levels [B]."""


@part("objective", "denoising")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """The weighted error of the network's prediction, or the variational bound.

    Args:
      weighting: of the loss over noise levels.
      times: the time sampler of training.
      distance: "l2", "l1" or "l2_sum"; see `losses.DISTANCES`.
      vlb_weight: of the variational bound in the loss, where the variance is learned.
      uncertainty: weight by how uncertain the network is: (lambda / exp(u)) err^2 + u, where u, a function of the
        noise level, is learned. At its optimum exp(u) is the mean of lambda err^2 at that level, so every level contributes
        gradients of the same size. u takes no part in sampling. The network must have `log_variance`, as "edm2" does.

    Sources: Ho et al. 2020 (arXiv 2006.11239); uncertainty: Karras et al. 2024, section 2.2 and appendix B (arXiv 2312.02696).
    """

    weighting: Any = "simple"
    times: Any = "uniform"
    distance: Literal["l2", "l1", "l2_sum"] = "l2"
    vlb_weight: NonNegative = 0.0
    uncertainty: bool = False

    name = "denoising"

    def __post_init__(self) -> None:
        build("weighting", self.weighting)
        object.__setattr__(self, "times", build("times", self.times))

    def check(self, system: Parts) -> None:
        """Raise a `ConfigError` for objectives that do not train what the process needs."""
        super().check(system)
        masked = any(conditioner.keeps_known for conditioner in system.conditioners)
        losses.check(system.process, self.weighting, self.distance, self.vlb_weight, masked=masked)
        if self.vlb_weight or build("weighting", self.weighting) is weightings.bound_only:
            range_of_levels(system.codec, "the variational bound, as a loss,")
        if self.uncertainty:
            self._check_uncertainty(system)

    def _check_uncertainty(self, system: Parts) -> None:
        what = "objective 'denoising' with uncertainty"
        if not isinstance(system.network, LearnsUncertainty):
            raise ConfigError(f"{what} needs a network that learns it, such as 'edm2'")
        # Importance sampling compensates what the uncertainty already does.
        if self.vlb_weight or system.process.learns_variance or isinstance(self.times, Importance):
            raise ConfigError(f"{what} takes a fixed variance, vlb_weight 0 and unbiased times")
        if build("weighting", self.weighting) is weightings.bound_only:
            raise ConfigError(f"{what} weights a squared error, of which the weighting 'vlb' has none: use 'edm', or 'simple'")
        if self.distance == "l1":
            raise ConfigError(f"{what} learns the variance of a squared error: use the distance 'l2' or 'l2_sum'")

    def init_state(self, system: Parts) -> Any:
        """Make the time sampler's history; empty for most."""
        return self.times.init_state(system.process)

    def loss(
        self, system: Parts, params: Any, state: Any, example: Example, key: jax.Array, *,
        step: jax.Array, frozen: Mapping[str, Any], train: bool,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        """Compute the denoising loss; where data are known, over what is to be made alone."""
        known = example.known
        value, output = losses.denoising(
            system.process,
            system.network.apply if known is None else _with_known(system.network.apply, known),
            params,
            example.x0,
            named(key, "denoising"),
            cond=example.cond,
            weighting=self.weighting,
            times=self.times,
            distance=self.distance,
            vlb_weight=self.vlb_weight,
            **({} if system.codec.range is None else {"data_range": system.codec.range}),
            sampler_state=state,
            apply_kwargs={"train": train, "rngs": {"dropout": named(key, "dropout")}},
            where=None if known is None else known.made,
        )
        if self.uncertainty:
            weight = weightings.in_target_space(build("weighting", self.weighting), system.process, output.t)
            u = system.network.log_variance(params, system.process.noise_level(output.t))
            value = jnp.mean(weight * output.per_example * jnp.exp(-u) + u)
        return value, {"state": output.sampler_state, "per_example": output.per_example, "log_snr": output.log_snr}


def _with_known(apply: Callable[..., jax.Array], known: Known) -> Callable[..., jax.Array]:
    """The network's apply with known data, free of noise, in place of those of x_t."""

    def function(params: Any, x: jax.Array, level: jax.Array, cond: Any, **kwargs: Any) -> jax.Array:
        return apply(params, jnp.where(known.made, x, known.values), level, cond, **kwargs)

    return function
