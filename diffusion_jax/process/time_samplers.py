"""How training draws times: frozen objects with `init_state`, `sample` and `update`, all of which can be jitted.

A discrete schedule draws from its steps {1, ..., T} / T, a continuous one from (0, 1], from the schedule's `t_min` on.
Under a global mesh the batch is the global batch, so stateful samplers need no communication of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import ConfigError
from diffusion_jax.process.tables import alpha_sigma_from_log_snr
from diffusion_jax.process.types import Corruption, PerExample
from diffusion_jax.registry import part
from diffusion_jax.values import Count, NonNegative, Range

Draw = tuple[PerExample, PerExample]

# In continuous time the target of still cleaner images has no digits left.
_EARLIEST = 1e-4


class TimeSampler(Protocol):
    """The contract."""

    def init_state(self, process: Corruption) -> Any:
        """Return what is carried from step to step; an empty dict for most."""

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        """Return (t [count], loss weight [count]); the weight is 1 unless the draw is biased."""

    def update(self, process: Corruption, state: Any, t: PerExample, losses: PerExample) -> Any:
        """Return the state after seeing losses [count] at times t, without the weights of `sample`."""


def snap(process: Corruption, t: PerExample) -> PerExample:
    """Return times rounded up to the steps of a discrete schedule; in continuous time, kept from the earliest.

    A schedule that names its own earliest time is trusted; a time may carry a rounding above its step.
    """
    if process.num_steps is None:
        return jnp.clip(t, process.schedule.t_min or _EARLIEST, 1.0)
    return jnp.clip(jnp.ceil(t * process.num_steps - 1e-3), 1, process.num_steps) / process.num_steps


class Stateless:
    """A sampler that carries nothing from step to step."""

    def init_state(self, process: Corruption) -> dict:
        return {}

    def update(self, process: Corruption, state: Any, t: PerExample, losses: PerExample) -> Any:
        return state


@part("times", "uniform")
@dataclasses.dataclass(frozen=True)
class Uniform(Stateless):
    """Independent uniform times.

    Args:
      t_min: the smallest time drawn in continuous time, unless the schedule's own is larger.
    """

    t_min: Annotated[float, Range(0, 1, open_high=True)] = _EARLIEST

    def _unit(self, key: jax.Array, count: int) -> PerExample:
        """Uniform in (0, 1]."""
        return 1.0 - jax.random.uniform(key, (count,))

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        u = self._unit(key, count)
        if process.num_steps is None:
            start = max(self.t_min, process.schedule.t_min)
            return start + (1 - start) * u, jnp.ones(count)
        return snap(process, u), jnp.ones(count)


@part("times", "low_discrepancy")
@dataclasses.dataclass(frozen=True)
class LowDiscrepancy(Uniform):
    """One uniform offset and evenly spaced times: uniform marginals, less variance (Kingma et al. 2021, 2107.00630)."""

    def _unit(self, key: jax.Array, count: int) -> PerExample:
        return 1.0 - (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0


@part("times", "antithetic")
@dataclasses.dataclass(frozen=True)
class Antithetic(Uniform):
    """Uniform times in pairs: step i of a chain with T - 1 - i, t with 1 - t; the second half of a batch pairs the first.

    Source: the published code of DDIM (arXiv 2010.02502).
    """

    def _unit(self, key: jax.Array, count: int) -> PerExample:
        first = 1.0 - jax.random.uniform(key, ((count + 1) // 2,))
        return jnp.concatenate([first, 1.0 - first])[:count]

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        if process.num_steps is None:
            return super().sample(process, key, count, state)
        first = jax.random.randint(key, ((count + 1) // 2,), 0, process.num_steps)
        index = jnp.concatenate([first, process.num_steps - 1 - first])[:count]
        return (index + 1) / process.num_steps, jnp.ones(count)


@dataclasses.dataclass(frozen=True)
class _Normal(Stateless):
    mean: float
    std: NonNegative

    def _draw(self, key: jax.Array, count: int) -> PerExample:
        return self.mean + self.std * jax.random.normal(key, (count,))


@part("times", "log_normal")
@dataclasses.dataclass(frozen=True)
class LogNormal(_Normal):
    """ln(sigma / alpha) normal with `mean` and `std` (Karras et al. 2022, table 1, arXiv 2206.00364)."""

    mean: float = -1.2
    std: NonNegative = 1.2

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        return snap(process, process.schedule.inverse(-2 * self._draw(key, count))), jnp.ones(count)


@part("times", "logit_normal")
@dataclasses.dataclass(frozen=True)
class LogitNormal(_Normal):
    """t = sigmoid(normal(mean, std)) (Esser et al. 2024, section 3.1, arXiv 2403.03206)."""

    mean: float = 0.0
    std: NonNegative = 1.0

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
        return snap(process, jax.nn.sigmoid(self._draw(key, count))), jnp.ones(count)


@part("times", "importance")
@dataclasses.dataclass(frozen=True)
class Importance:
    """Times drawn in proportion to the root mean square of the losses last seen there; unbiased through weights.

    Args:
      history: losses kept for every step (or bin); until all are full, times are uniform.
      uniform_mix: the share of uniform draws after that.
      num_bins: of continuous time.

    Source: Nichol & Dhariwal 2021, section 3.3 (arXiv 2102.09672).
    """

    history: Count = 10
    uniform_mix: Annotated[float, Range(0, 1, open_low=True)] = 0.001
    num_bins: Count = 100

    def _bins(self, process: Corruption) -> int:
        return process.num_steps or self.num_bins

    def _start(self, process: Corruption) -> float:
        """Where the first bin begins."""
        return 0.0 if process.num_steps else max(_EARLIEST, process.schedule.t_min)

    def init_state(self, process: Corruption) -> dict[str, jax.Array]:
        bins = self._bins(process)
        return {"losses": jnp.zeros((bins, self.history)), "count": jnp.zeros(bins, jnp.int32)}

    def probabilities(self, state: dict[str, jax.Array]) -> Float[Array, " bins"]:
        """Return the probability of each step or bin, summing to 1."""
        bins = state["count"].shape[0]
        root = jnp.sqrt(jnp.mean(state["losses"] ** 2, axis=-1))
        mixed = (1 - self.uniform_mix) * root / jnp.maximum(root.sum(), 1e-30) + self.uniform_mix / bins
        full = (state["count"] >= self.history).all() & (root.sum() > 0)
        return jnp.where(full, mixed, 1 / bins)

    def sample(self, process: Corruption, key: jax.Array, count: int, state: dict[str, jax.Array]) -> Draw:
        bins, start = self._bins(process), self._start(process)
        p = self.probabilities(state)
        for_bin, within = jax.random.split(key)
        chosen = jax.random.categorical(for_bin, jnp.log(p), shape=(count,))
        offset = 1.0 if process.num_steps else 1.0 - jax.random.uniform(within, (count,))
        return start + (1 - start) * (chosen + offset) / bins, 1 / (bins * p[chosen])

    def update(self, process: Corruption, state: dict[str, jax.Array], t: PerExample, losses: PerExample) -> dict:
        """Return the last `history` losses of every step, in the order of the batch; those that are not finite are left out."""
        bins, start = self._bins(process), self._start(process)
        losses = jax.lax.stop_gradient(losses)
        place = jnp.ceil((t - start) / (1 - start) * bins - 1e-3).astype(int) - 1
        place = jnp.where(jnp.isfinite(losses), jnp.clip(place, 0, bins - 1), bins)
        # Losses of one step stand together, in order; the oldest in its ring go, be they of this batch or of earlier ones.
        order = jnp.argsort(place, stable=True)
        place, losses = place[order], losses[order]
        number = jnp.zeros(bins + 1, jnp.int32).at[place].add(1)
        rank = jnp.arange(place.size) - (jnp.cumsum(number) - number)[place]
        slot = (jnp.append(state["count"], 0)[place] + rank) % self.history
        row = jnp.where(rank >= number[place] - self.history, place, bins)
        kept = state["losses"].at[row, slot].set(losses, mode="drop")
        return {"losses": kept, "count": state["count"] + number[:-1]}


@part("times", "piecewise_uniform")
@dataclasses.dataclass(frozen=True)
class PiecewiseUniform(Stateless):
    """A step i of the chain drawn uniformly, then a level uniform between its gamma and that of the step before, 1 at first.

    Args:
      of: "sqrt_gamma" draws uniformly in the square root, as published ports do; "gamma" as the paper has it.

    Levels before a hundredth of the first step are not drawn: in float32 there would be no noise to predict.

    Source: Saharia et al. 2021, section 2.1 (arXiv 2104.07636); Chen et al. 2021, algorithm 1 (arXiv 2009.00713).
    """

    of: Literal["gamma", "sqrt_gamma"] = "sqrt_gamma"

    def sample(self, process: Corruption, key: jax.Array, count: int, state: Any) -> Draw:
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
