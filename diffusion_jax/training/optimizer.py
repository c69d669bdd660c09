"""Optimisers by name, with warm-up, decay and clipping, through optax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError, check_choice, nearest
from diffusion_jax.lazy import lazy
from diffusion_jax.registry import build, fields, lookup, register

optax = lazy("optax")

DECAYS = ("constant", "cosine", "linear", "rsqrt", "inverse_sqrt")


def schedule(learning_rate: float, warmup_steps: int, decay: str, decay_steps: int, final: float = 0.0) -> optax.Schedule:
    """Return a linear warm-up over `warmup_steps`, then constant, cosine, linear, or 1/sqrt decay until `decay_steps`.

    "rsqrt" begins to fall where the warm-up ends. "inverse_sqrt" is constant until `decay_steps`, counted from the first
    step, and falls as sqrt(decay_steps / step) after that (EDM2, arXiv 2312.02696).

    Args:
      final: the share of the learning rate that cosine and linear decay end at.

    Raises:
      ConfigError: an unknown decay, a negative learning rate or warm-up.
    """
    if not isinstance(learning_rate, int | float) or learning_rate < 0 or warmup_steps < 0:
        raise ConfigError(
            f"optimizer: learning_rate and warmup_steps must not be negative, got {learning_rate!r} and {warmup_steps!r}"
        )
    check_choice("optimizer: decay", decay, DECAYS)
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
    check_choice("optimizer: decay_on", what, ("all", "matrices"))
    return None if what == "all" else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@register("optimizer", "adamw")
def adamw(
    rate: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_on: str = "all",
) -> optax.GradientTransformation:
    """Build AdamW (arXiv 1711.05101); weight decay 0 is Adam."""
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decayed(decay_on))


@register("optimizer", "adam")
def adam(rate: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Build Adam (arXiv 1412.6980)."""
    return optax.adam(rate, b1=b1, b2=b2, eps=eps)


@register("optimizer", "radam")
def radam(rate: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Build rectified Adam (arXiv 1908.03265), which consistency models are trained with."""
    return optax.radam(rate, b1=b1, b2=b2, eps=eps)


@register("optimizer", "adafactor")
def adafactor(
    rate: optax.Schedule,
    weight_decay: float | None = None,
    min_dim_size_to_factor: int = 128,
    decay_on: str = "all",
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
def sgd(rate: optax.Schedule, momentum: float | None = None) -> optax.GradientTransformation:
    """Build stochastic gradient descent."""
    return optax.sgd(rate, momentum=momentum)


_SHARED = ("learning_rate", "warmup_steps", "decay", "decay_steps", "final_ratio", "clip_norm")


def from_config(config: Mapping[str, Any], steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Build (optimiser, learning rate by the number of updates) of one group of parameters.

    Args:
      config: "name", "learning_rate", "warmup_steps", "decay", "decay_steps" (default: `steps`), "final_ratio",
        "clip_norm" (of the group's gradient; 0 is off), and the optimiser's own fields.
      steps: of the whole run.

    Raises:
      ConfigError: an unknown name or field, or a value out of range.
    """
    given = dict(config)
    name = given.pop("name")
    own = [field for field in fields(lookup("optimizer", name))[0] if field != "rate"]
    for field in given:
        if field not in (*own, *_SHARED):
            known = (*_SHARED, *own)
            raise ConfigError(
                f"optimizer {name!r} has no field {field!r}{nearest(field, known)} (its fields: {', '.join(known)})"
            )
    rate = schedule(
        given["learning_rate"],
        given.get("warmup_steps", 0),
        given.get("decay", "constant"),
        given.get("decay_steps", steps),
        given.get("final_ratio", 0.0),
    )
    optimizer = build("optimizer", {"name": name, "rate": rate, **{k: v for k, v in given.items() if k in own}})
    clip = given.get("clip_norm", 0.0)
    return (optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer), rate


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
