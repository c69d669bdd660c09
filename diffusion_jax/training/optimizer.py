"""Optimisers by name, with warm-up, decay and clipping, through optax."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError, check_choice, nearest
from diffusion_jax.lazy import lazy
from diffusion_jax.registry import build, check_fields, fields, lookup, register
from diffusion_jax.values import Count, Fraction, Natural, NonNegative, Positive, Probability

optax = lazy("optax")

Decay = Literal["constant", "cosine", "linear", "rsqrt", "inverse_sqrt"]
Decayed = Literal["all", "matrices"]


@dataclasses.dataclass(frozen=True)
class Shared:
    """The fields that all optimisers have.

    Attributes:
      learning_rate: after the warm-up.
      warmup_steps, decay, decay_steps, final_ratio: see `schedule`; decay_steps is the whole run's where it is None.
      clip_norm: of the group's gradient; 0 is off.
    """

    learning_rate: NonNegative
    warmup_steps: Natural = 0
    decay: Decay = "constant"
    decay_steps: Count | None = None
    final_ratio: Fraction = 0.0
    clip_norm: NonNegative = 0.0


def schedule(learning_rate: float, warmup_steps: int, decay: str, decay_steps: int, final: float = 0.0) -> optax.Schedule:
    """Return a linear warm-up over `warmup_steps`, then constant, cosine, linear, or 1/sqrt decay until `decay_steps`.

    "rsqrt" begins to fall where the warm-up ends. "inverse_sqrt" is constant until `decay_steps`, counted from the first
    step, and falls as sqrt(decay_steps / step) after that (EDM2, arXiv 2312.02696).

    Args:
      final: the share of the learning rate that cosine and linear decay end at.
    """
    rest = max(decay_steps - warmup_steps, 1)
    if decay == "constant":
        after = optax.constant_schedule(learning_rate)
    elif decay == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, rest, alpha=final)
    elif decay == "linear":
        after = optax.linear_schedule(learning_rate, final * learning_rate, rest)
    elif decay == "inverse_sqrt":
        after = lambda step: learning_rate / jnp.sqrt(jnp.maximum((step + warmup_steps) / decay_steps, 1.0))  # noqa: E731
    else:
        start = max(warmup_steps, 1)
        after = lambda step: learning_rate * (start / (step + start)) ** 0.5  # noqa: E731
    if not warmup_steps:
        return after
    # The first step is not wasted on a rate of zero.
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1 or 1)
    return optax.join_schedules([warmup, after], [warmup_steps])


def _decayed(what: str) -> Any:
    """A mask of the parameters that decay: "all", or "matrices", which spares biases and scales."""
    return None if what == "all" else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@register("optimizer", "adamw")
def adamw(
    rate: optax.Schedule,
    b1: Probability = 0.9,
    b2: Probability = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    decay_on: Decayed = "all",
) -> optax.GradientTransformation:
    """Build AdamW (arXiv 1711.05101); weight decay 0 is Adam."""
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decayed(decay_on))


@register("optimizer", "adam")
def adam(
    rate: optax.Schedule, b1: Probability = 0.9, b2: Probability = 0.999, eps: Positive = 1e-8
) -> optax.GradientTransformation:
    """Build Adam (arXiv 1412.6980)."""
    return optax.adam(rate, b1=b1, b2=b2, eps=eps)


@register("optimizer", "radam")
def radam(
    rate: optax.Schedule, b1: Probability = 0.9, b2: Probability = 0.999, eps: Positive = 1e-8
) -> optax.GradientTransformation:
    """Build rectified Adam (arXiv 1908.03265), which consistency models are trained with."""
    return optax.radam(rate, b1=b1, b2=b2, eps=eps)


@register("optimizer", "adafactor")
def adafactor(
    rate: optax.Schedule,
    weight_decay: NonNegative | None = None,
    min_dim_size_to_factor: Count = 128,
    decay_on: Decayed = "all",
    parameter_scale: bool = False,
) -> optax.GradientTransformation:
    """Build Adafactor (arXiv 1804.04235): second moments in rows and columns, for large models.

    Args:
      parameter_scale: whether a leaf's rate is also multiplied by the root mean square of its values, as optax does by
        default.
    """
    return optax.adafactor(
        rate,
        weight_decay_rate=weight_decay,
        weight_decay_mask=_decayed(decay_on),
        min_dim_size_to_factor=min_dim_size_to_factor,
        multiply_by_parameter_scale=parameter_scale,
    )


@register("optimizer", "sgd")
def sgd(rate: optax.Schedule, momentum: Probability | None = None) -> optax.GradientTransformation:
    """Build stochastic gradient descent."""
    return optax.sgd(rate, momentum=momentum)


def from_config(config: Mapping[str, Any], steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Build (optimiser, learning rate by the number of updates) of one group of parameters.

    Args:
      config: "name", the fields of `Shared`, and the optimiser's own.
      steps: of the whole run.

    Raises:
      ConfigError: an unknown name or field, or a value out of range.
    """
    given = dict(config)
    name = given.pop("name")
    own = [field for field in fields(lookup("optimizer", name))[0] if field != "rate"]
    known = (*fields(Shared)[0], *own)
    for field in given:
        if field not in known:
            raise ConfigError(
                f"optimizer {name!r} has no field {field!r}{nearest(field, known)} (its fields: {', '.join(known)})"
            )
    mine = {field: value for field, value in given.items() if field in own}
    given = {field: value for field, value in given.items() if field not in own}
    check_fields(f"optimizer {name!r}", Shared, given)
    shared = Shared(**given)
    last = steps if shared.decay_steps is None else shared.decay_steps
    rate = schedule(shared.learning_rate, shared.warmup_steps, shared.decay, last, shared.final_ratio)
    optimizer = build("optimizer", {"name": name, "rate": rate, **mine})
    return (optax.chain(optax.clip_by_global_norm(shared.clip_norm), optimizer) if shared.clip_norm else optimizer), rate


def by_group(
    config: Mapping[str, Any], groups: Iterable[str], steps: int
) -> tuple[dict[str, optax.GradientTransformation], dict[str, optax.Schedule]]:
    """Build ({group: optimiser}, {group: learning rate}) of a run's `optimizer` configuration.

    Args:
      config: the fields of one optimiser, which every group gets a copy of, or {group: fields} for all of them.

    Raises:
      ConfigError: a group that the system has not, or one that is left out; and as `from_config`.
    """
    groups = list(groups)
    if has_groups(config):
        for group in config:
            check_choice("optimizer: group of parameters", group, groups)
        for group in groups:
            if group not in config:
                raise ConfigError(f"optimizer: the group {group!r} of the system's parameters has none: give its fields too")
    built = {group: from_config(config[group] if has_groups(config) else config, steps) for group in groups}
    return {group: pair[0] for group, pair in built.items()}, {group: pair[1] for group, pair in built.items()}


def has_groups(config: Mapping[str, Any]) -> bool:
    """Say whether an `optimizer` configuration is {group: fields}, and not the fields themselves.

    >>> has_groups({"name": "adam"}), has_groups({"network": {"name": "adam"}})
    (False, True)
    """
    return bool(config) and all(isinstance(value, Mapping) for value in config.values())
