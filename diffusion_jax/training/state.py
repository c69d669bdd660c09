"""The training state: a pytree with everything that a resumed run needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.rng import named
from diffusion_jax.training.ema import Ema


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Attributes:
    step: finished steps, int32 scalar; also the position in the data.
    params: of the network, float32.
    ema: averages of the parameters by label.
    opt_state: of the optimiser.
    system_state: of the system, such as the history of an importance sampler.
    skipped: steps whose loss or gradient was not finite, int32 scalar.
    """

    step: jax.Array
    params: Any
    ema: dict[str, Any]
    opt_state: Any
    system_state: Any
    skipped: jax.Array

    def as_dict(self) -> dict[str, Any]:
        """The fields by name: what checkpoints store."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def init_state(system: Any, optimizer: optax.GradientTransformation, averages: tuple[Ema, ...], seed: int) -> TrainState:
    """A fresh state; jit it with out_shardings, so that no array is ever whole on one device."""
    params = system.init(named(jax.random.key(seed), "init"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={average.label: jax.tree.map(jnp.copy, params) for average in averages},
        opt_state=optimizer.init(params),
        system_state=system.init_state(),
        skipped=jnp.zeros((), jnp.int32),
    )
