"""The denoising loss: weighting x time sampler x target, with the variational bound beside it where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process import weightings
from diffusion_jax.process.likelihood import check_data, vlb_term
from diffusion_jax.process.process import Process
from diffusion_jax.process.tables import floating
from diffusion_jax.process.types import PIXELS, Corruption, Data, DataRange, PerExample
from diffusion_jax.registry import build
from diffusion_jax.rng import named


def _flat(difference: jax.Array) -> jax.Array:
    return difference.reshape(difference.shape[0], -1)


DISTANCES: dict[str, Callable[[jax.Array], PerExample]] = {
    "l2": lambda difference: jnp.square(_flat(difference)).mean(-1),
    "l1": lambda difference: jnp.abs(_flat(difference)).mean(-1),
    "l2_sum": lambda difference: jnp.square(_flat(difference)).sum(-1),
}
"""difference [B, ...] -> distance [B]: squares or magnitudes averaged over positions, or squares summed, as DDIM has it."""


class LossOutput(NamedTuple):
    """What a loss tells beside its value.

    Attributes:
      per_example: unweighted losses in the target's space, [B]; T times a term of the bound where that is all there is.
      t, log_snr: of each example, [B].
      sampler_state: of the time sampler, after this batch.
      weighted: losses as they enter the value, which is their mean: with all weights, and with the bound that is added; [B].
    """

    per_example: PerExample
    t: PerExample
    log_snr: PerExample
    sampler_state: Any
    weighted: PerExample


def _distance(name: str, difference: jax.Array, where: jax.Array | None) -> PerExample:
    """One of `DISTANCES` over the positions that count: averages are divided by their share."""
    if where is None:
        return DISTANCES[name](difference)
    where = jnp.broadcast_to(where, difference.shape)
    over_all = DISTANCES[name](jnp.where(where, difference, 0.0))
    return over_all if name == "l2_sum" else over_all / jnp.maximum(_flat(where).mean(-1), 1e-12)


def check(process: Process, weighting: Any, distance: str, vlb_weight: float, masked: bool = False) -> None:
    """Raise a `ConfigError` for objectives that do not train what the process needs.

    Args:
      masked: whether only some positions count; the bound is over all.
    """
    weigh = build("weighting", "simple" if weighting is None else weighting)
    check_choice("loss: distance", distance, DISTANCES)
    if vlb_weight < 0:
        raise ConfigError(f"vlb_weight must not be negative, got {vlb_weight}")
    if masked and (vlb_weight or weigh is weightings.bound_only):
        raise ConfigError(
            "the variational bound is over all positions, but the loss counts some of them only: set vlb_weight to 0, and use "
            "a fixed variance and a weighting other than 'vlb'"
        )
    if process.learns_variance and not vlb_weight and weigh is not weightings.bound_only:
        raise ConfigError(
            f"the variance {process.variance!r} is learned through the variational bound: set vlb_weight (0.001 is "
            "L_hybrid), or weighting 'vlb' (L_vlb), or use a fixed variance"
        )
    if vlb_weight and not process.learns_variance and weigh is not weightings.bound_only:
        raise ConfigError(
            f"vlb_weight {vlb_weight:g} trains a learned variance and nothing else, but the variance {process.variance!r} is "
            "fixed: set vlb_weight to 0, or variance 'learned_range' (L_hybrid), or weighting 'vlb' (L_vlb)"
        )


def denoising(
    process: Process,
    apply: Callable[..., jax.Array],
    params: Any,
    x0: Data,
    key: jax.Array | None,
    *,
    t: PerExample | None = None,
    noise: Data | None = None,
    cond: Mapping[str, Any] | None = None,
    weighting: Any = "simple",
    times: Any = "uniform",
    distance: str = "l2",
    vlb_weight: float = 0.0,
    vlb_steps: int = 1000,
    data_range: DataRange = PIXELS,
    sampler_state: Any = None,
    apply_kwargs: Mapping[str, Any] | None = None,
    where: jax.Array | None = None,
) -> tuple[jax.Array, LossOutput]:
    """Compute the training loss of a batch.

    Args:
      apply: (params, x [B, ...], noise level [B], cond, **apply_kwargs) -> output.
      x0: clean data [B, ...], floating.
      key: split by name for times and noise; None where both are given.
      t: times [B] in (0, 1] to take instead of drawn ones, without the weights of a draw. Step i of a chain, from 0, is at
        `process.schedule.time_of(i)`; the sampler's state stays as it is.
      noise: standard normal, shaped like x0, to take instead of a draw.
      cond: conditioning for `apply`.
      weighting: a name, configuration or function; None is "simple"; see `weightings`.
      times: a name, configuration or `TimeSampler`.
      distance: "l2" or "l1", averaged over positions, or "l2_sum"; see `DISTANCES`.
      vlb_weight: of the variational bound, bits per dimension, estimated by T times one term; 0.001 is L_hybrid. Unless
        the weighting is "vlb", where 0 stands for 1, its gradient reaches the variance channels only.
      vlb_steps: T of a continuous process; a chain has its own.
      data_range: of the 256 levels whose likelihood is the bound's first term, those of pixels by default; that term is
        exact, or published code's, as the process's `decoder` says.
      sampler_state: of the time sampler; its initial state if None.
      where: bool, broadcasting against x0: the positions that count. Averages are over these alone; not with the bound.

    Returns:
      (scalar loss, `LossOutput`).

    Raises:
      ConfigError: unknown names; a learned variance without the bound; `where` with it; a network output that does not fit
        the data; no key for what is not given.
      DataError: x0 of integers, or outside of `data_range` where the bound counts its levels.

    Source: Ho et al. 2020 (arXiv 2006.11239); L_hybrid: Nichol & Dhariwal 2021, section 3.1 (arXiv 2102.09672).

    >>> import jax
    >>> x0 = jax.random.uniform(jax.random.key(0), (8, 4, 4, 3), minval=-1, maxval=1)
    >>> process = Process("cosine", prediction="v")
    >>> apply = lambda params, x, noise, cond: params * x
    >>> loss, output = denoising(process, apply, 0.5, x0, jax.random.key(1), weighting="min_snr")
    >>> loss.shape, output.per_example.shape
    ((), (8,))
    """
    check(process, weighting, distance, vlb_weight, masked=where is not None)
    weigh = build("weighting", "simple" if weighting is None else weighting)
    only_bound = weigh is weightings.bound_only
    check_data(x0, data_range if only_bound or vlb_weight else None)
    draw = Times(process, times, sampler_state, t)
    t, time_weight = draw(key, x0)
    if noise is None:
        x_t, eps = process.corrupt(named(_given(key, "noise"), "noise"), x0, t)
    else:
        x_t, eps = process.diffuse(x0, t, noise), noise
    x, level = process.network_inputs(x_t, t)
    output = floating(apply(params, x, level, cond, **(apply_kwargs or {})))
    prediction, raw_variance = process.split(output, x_t)

    per_example = _distance(distance, process.target(x0, eps, t) - prediction, where)
    if only_bound:
        per_example = _bound(process, output, x0, x_t, t, vlb_steps, data_range)
        losses = (vlb_weight or 1.0) * per_example
    else:
        losses = per_example * weightings.in_target_space(weigh, process, t)
        if vlb_weight:
            output = jnp.concatenate([jax.lax.stop_gradient(prediction), raw_variance], axis=-1)
            losses += vlb_weight * _bound(process, output, x0, x_t, t, vlb_steps, data_range)
    weighted = time_weight * losses
    return weighted.mean(), LossOutput(per_example, t, process.log_snr(t), draw.update(t, losses), weighted)


def _given(key: jax.Array | None, what: str) -> jax.Array:
    if key is None:
        raise ConfigError(f"the loss needs a key to draw its {what} from: give a key, or the {what}")
    return key


class Times:
    """The times of one batch: a time sampler's draw, or those that were given, which leave its state as it is."""

    def __init__(self, process: Corruption, times: Any, state: Any, given: PerExample | None) -> None:
        self.process, self.sampler, self.given = process, build("times", times), given
        self.state = self.sampler.init_state(process) if state is None else state

    def __call__(self, key: jax.Array | None, x0: jax.Array) -> tuple[PerExample, PerExample]:
        """Return times and their weights, [B] each, float32 or of the dtype of x0 where that is more."""
        count, dtype = x0.shape[0], jnp.promote_types(x0.dtype, jnp.float32)
        if self.given is not None:
            return jnp.broadcast_to(jnp.asarray(self.given, dtype), (count,)), jnp.ones(count, dtype)
        drawn = self.sampler.sample(self.process, named(_given(key, "times"), "times"), count, self.state)
        return tuple(values.astype(dtype) for values in drawn)

    def update(self, t: PerExample, losses: PerExample) -> Any:
        """Return the sampler's state after unweighted losses [B] at the times that it drew."""
        return self.state if self.given is not None else self.sampler.update(self.process, self.state, t, losses)


def _bound(
    process: Process, output: jax.Array, x0: Data, x_t: Data, t: PerExample, vlb_steps: int, data_range: DataRange
) -> PerExample:
    """T times one term of the bound."""
    steps = process.num_steps or vlb_steps
    s = jnp.maximum(jnp.round(t * steps) - 1, 0) / steps if process.num_steps else jnp.maximum(t - 1 / steps, 0.0)
    return steps * vlb_term(process, process.decode(output, x_t, t), x0, x_t, s, t, data_range=data_range)
