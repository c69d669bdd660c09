"""Where activations live on a mesh: set by whoever traces the program, read by the blocks of the networks."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_SHARDING: contextvars.ContextVar[jax.sharding.NamedSharding | None] = contextvars.ContextVar(
    "activation_sharding", default=None
)


@contextlib.contextmanager
def activation_sharding(sharding: jax.sharding.NamedSharding | None) -> Iterator[None]:
    """Within this context, blocks constrain their inputs to `sharding` (its spec speaks of the batch axis).

    Without it, sharded parameters can pull activations into their own layout, which multiplies memory.
    """
    token = _SHARDING.set(sharding)
    try:
        yield
    finally:
        _SHARDING.reset(token)


def constrain(x: jax.Array) -> jax.Array:
    """Constrain an activation [B, ...] to the current activation sharding, if any."""
    sharding = _SHARDING.get()
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
