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
    frozen: what the loss reads and training never changes: {"teacher": parameters}, or nothing. It is not saved.
    """

    step: jax.Array
    params: Any
    ema: dict[str, Any]
    opt_state: Any
    system_state: Any
    skipped: jax.Array
    frozen: dict[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name: what checkpoints store, which is all but `frozen`."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "frozen"]
        return {name: getattr(self, name) for name in names}


def init_state(
    system: Any, optimizer: optax.GradientTransformation, averages: tuple[Ema, ...], seed: int, frozen: Any = None
) -> TrainState:
    """A fresh state without `frozen`; jit it with out_shardings, so that no array is ever whole on one device.

    Args:
      frozen: where a system has a teacher, its parameters, from which the system makes its own first ones.
    """
    params = system.start(frozen) if frozen else system.init(named(jax.random.key(seed), "init"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={average.label: jax.tree.map(jnp.copy, params) for average in averages},
        opt_state=optimizer.init(params),
        system_state=system.init_state(),
        skipped=jnp.zeros((), jnp.int32),
    )
