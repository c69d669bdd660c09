"""The training state: a pytree with everything that a resumed run needs; and which of its parameters are trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.errors import ConfigError
from diffusion_jax.lazy import lazy
from diffusion_jax.rng import named
from diffusion_jax.systems import Distils, System
from diffusion_jax.training.ema import Ema
from diffusion_jax.training.mesh import path_name

optax = lazy("optax")

Optimizers = Mapping[str, "optax.GradientTransformation"]
"""One for each group of parameters."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What training carries from step to step.

    Attributes:
      step: finished steps, int32 scalar; also the position in the data.
      params: {group: tree}, float32.
      ema: {label: {group: tree}}, averages of the parameters.
      opt_state: {group: state} of the optimisers, which know the trained parameters alone.
      system_state: of the system, such as the history of an importance sampler.
      skipped: steps whose loss or gradient was not finite, int32 scalar.
      frozen: {name: {group: tree}}: what the losses read and training never changes; often empty. It is not saved.
    """

    step: jax.Array
    params: dict[str, Any]
    ema: dict[str, Any]
    opt_state: dict[str, Any]
    system_state: Any
    skipped: jax.Array
    frozen: dict[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name as checkpoints store them, which is all but `frozen`."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "frozen"]
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parameters are trained: those whose path, such as "network/down0/conv/kernel", one of the patterns is found in.

    Args:
      patterns: regular expressions, searched; none at all trains everything.
    """

    patterns: tuple[str, ...] = ()

    def pick(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return {group: tree} of the trained parameters alone; a group without any is an empty dict."""
        if not self.patterns:
            return dict(params)
        return {group: unflatten_dict(self._chosen(group, tree)) for group, tree in params.items()}

    def _chosen(self, group: str, tree: Any) -> dict[tuple[str, ...], Any]:
        name = lambda path: "/".join((group, *path))  # noqa: E731
        return {path: leaf for path, leaf in flatten_dict(tree).items() if any(re.search(p, name(path)) for p in self.patterns)}

    def merge(self, trained: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Return `params` with the trained ones, {group: tree} as `pick` returns them, in their places."""
        if not self.patterns:
            return {group: trained.get(group, tree) for group, tree in params.items()}
        flat = {group: flatten_dict(tree) | flatten_dict(trained.get(group, {})) for group, tree in params.items()}
        return {group: unflatten_dict(tree) for group, tree in flat.items()}

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` for a pattern that is no regular expression, or that matches none of the parameters."""
        names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(dict(params))[0]]
        for pattern in self.patterns:
            try:
                found = any(re.search(pattern, name) for name in names)
            except (re.error, TypeError) as error:
                raise ConfigError(f"training.trainable: {pattern!r} is no regular expression ({error})") from error
            if not found:
                raise ConfigError(
                    f"training.trainable: {pattern!r} matches nothing; paths look like {names[len(names) // 2]!r}"
                )


def first_params(system: System, seed: int, frozen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the parameters that training begins with, {group: tree}.

    Args:
      frozen: {name: {group: tree}}, out of which a system that distils may make them.
    """
    started = system.start(frozen) if isinstance(system, Distils) and system.needs and frozen else None
    return system.init(named(jax.random.key(seed), "init")) if started is None else started


def init_state(
    system: System,
    params: dict[str, Any],
    optimizers: Optimizers,
    averages: tuple[Ema, ...],
    trainable: Trainable = Trainable(),
) -> TrainState:
    """Return a fresh state, without `frozen`; jit it with out_shardings, so that no array is ever whole on one device."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={average.label: jax.tree.map(jnp.copy, params) for average in averages},
        opt_state={group: optimizers[group].init(tree) for group, tree in trainable.pick(params).items()},
        system_state=system.init_state(),
        skipped=jnp.zeros((), jnp.int32),
    )
