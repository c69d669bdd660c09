"""How training draws times: frozen objects with `init_state`, `sample` and `update`, all of which can be jitted.

A discrete schedule draws from its steps {1, ..., T} / T, a continuous one from (0, 1]. Under a global mesh the batch is
the global batch, so stateful samplers need no communication of their own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import register

if TYPE_CHECKING:
    from diffusion_jax.process.process import Process

Draw = tuple[jax.Array, jax.Array]


class TimeSampler(Protocol):
    """The contract."""

    def init_state(self, process: Process) -> Any:
        """What is carried from step to step; an empty dict for most."""

    def sample(self, process: Process, key: jax.Array, count: int, state: Any) -> Draw:
        """(t [count], loss weight [count]); the weight is 1 unless the draw is biased."""

    def update(self, process: Process, state: Any, t: jax.Array, losses: jax.Array) -> Any:
        """The state after seeing unweighted losses [count] at times t."""


def snap(process: Process, t: jax.Array) -> jax.Array:
    """Times rounded up to the steps of a discrete schedule; unchanged in continuous time."""
    if process.num_steps is None:
        return t
    return jnp.clip(jnp.ceil(t * process.num_steps), 1, process.num_steps) / process.num_steps


class _Stateless:
    def init_state(self, process: Process) -> dict:
        return {}

    def update(self, process: Process, state: Any, t: jax.Array, losses: jax.Array) -> Any:
        return state

    def _unit(self, key: jax.Array, count: int) -> jax.Array:
        """Uniform in (0, 1]."""
        return 1.0 - jax.random.uniform(key, (count,))

    def _from_unit(self, process: Process, u: jax.Array) -> jax.Array:
        raise AssertionError("samplers that draw from a warped uniform define this")

    def sample(self, process: Process, key: jax.Array, count: int, state: Any) -> Draw:
        return snap(process, self._from_unit(process, self._unit(key, count))), jnp.ones(count)


@register("times", "uniform")
@dataclasses.dataclass(frozen=True)
class Uniform(_Stateless):
    """Independent uniform times.

    Args:
      t_min: the smallest time drawn in continuous time, where the target of the cleanest images has no digits left.
    """

    t_min: float = 1e-4

    def _from_unit(self, process: Process, u: jax.Array) -> jax.Array:
        return u if process.num_steps is not None else self.t_min + (1 - self.t_min) * u


@register("times", "low_discrepancy")
@dataclasses.dataclass(frozen=True)
class LowDiscrepancy(Uniform):
    """One uniform offset and evenly spaced times: uniform marginals, less variance (Kingma et al. 2021, 2107.00630)."""

    def _unit(self, key: jax.Array, count: int) -> jax.Array:
        return 1.0 - (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0


@register("times", "log_normal")
@dataclasses.dataclass(frozen=True)
class LogNormal(_Stateless):
    """ln(sigma / alpha) normal with `mean` and `std` (Karras et al. 2022, table 1, arXiv 2206.00364)."""

    mean: float = -1.2
    std: float = 1.2

    def sample(self, process: Process, key: jax.Array, count: int, state: Any) -> Draw:
        log_level = self.mean + self.std * jax.random.normal(key, (count,))
        t = process.schedule.inverse(-2 * log_level)
        return snap(process, jnp.clip(t, 1e-6, 1.0)), jnp.ones(count)


@register("times", "logit_normal")
@dataclasses.dataclass(frozen=True)
class LogitNormal(_Stateless):
    """t = sigmoid(normal(mean, std)) (Esser et al. 2024, section 3.1, arXiv 2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def sample(self, process: Process, key: jax.Array, count: int, state: Any) -> Draw:
        t = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (count,)))
        return snap(process, t), jnp.ones(count)


@register("times", "importance")
@dataclasses.dataclass(frozen=True)
class Importance:
    """Times drawn in proportion to the root mean square of the losses last seen there; unbiased through weights.

    Args:
      history: losses kept for every step (or bin); until all are full, times are uniform.
      uniform_mix: the share of uniform draws after that.
      num_bins: of continuous time.

    Source: Nichol & Dhariwal 2021, section 3.3 (arXiv 2102.09672).
    """

    history: int = 10
    uniform_mix: float = 0.001
    num_bins: int = 100

    def __post_init__(self) -> None:
        if self.history < 1 or not 0 < self.uniform_mix <= 1 or self.num_bins < 1:
            raise ConfigError(
                "times 'importance': needs history >= 1, 0 < uniform_mix <= 1 and num_bins >= 1, got "
                f"{self.history}, {self.uniform_mix} and {self.num_bins}"
            )

    def _bins(self, process: Process) -> int:
        return process.num_steps or self.num_bins

    def init_state(self, process: Process) -> dict[str, jax.Array]:
        bins = self._bins(process)
        return {"losses": jnp.zeros((bins, self.history)), "count": jnp.zeros(bins, jnp.int32)}

    def probabilities(self, state: dict[str, jax.Array]) -> jax.Array:
        """[bins], summing to 1."""
        bins = state["count"].shape[0]
        root = jnp.sqrt(jnp.mean(state["losses"] ** 2, axis=-1))
        mixed = (1 - self.uniform_mix) * root / jnp.maximum(root.sum(), 1e-30) + self.uniform_mix / bins
        full = (state["count"] >= self.history).all() & (root.sum() > 0)
        return jnp.where(full, mixed, 1 / bins)

    def sample(self, process: Process, key: jax.Array, count: int, state: dict[str, jax.Array]) -> Draw:
        bins = self._bins(process)
        p = self.probabilities(state)
        for_bin, within = jax.random.split(key)
        chosen = jax.random.categorical(for_bin, jnp.log(p), shape=(count,))
        offset = 1.0 if process.num_steps else 1.0 - jax.random.uniform(within, (count,))
        return (chosen + offset) / bins, 1 / (bins * p[chosen])

    def update(self, process: Process, state: dict[str, jax.Array], t: jax.Array, losses: jax.Array) -> dict:
        bins = self._bins(process)
        chosen = jnp.clip(jnp.ceil(t * bins - 1e-3).astype(int) - 1, 0, bins - 1)

        def push(state: dict[str, jax.Array], seen: Any) -> tuple[dict[str, jax.Array], None]:
            place, loss = seen
            slot = state["count"][place] % self.history  # a ring: the oldest goes
            kept = state["losses"].at[place, slot].set(loss)
            return {"losses": kept, "count": state["count"].at[place].add(1)}, None

        return jax.lax.scan(push, state, (chosen, jax.lax.stop_gradient(losses)))[0]
