"""A Flax module made functional: `init(key) -> params` and `apply(params, x, noise, cond) -> output`."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models.checks import check_conditioning
from diffusion_jax.spec import Spec

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network of known input shapes, whose parameters are its only state.

    Attributes:
      module: a Linen module called as `module(x, noise, cond, train=...)`.
      spec: of x; fully convolutional networks also run on images of other sizes.
      cond_spec: the conditioning keys that the network takes, each with the shape (without the batch) and dtype of its
        array, or a dict of such.
    """

    module: nn.Module
    spec: Spec
    cond_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cond_keys(self) -> frozenset[str]:
        """The keys that `cond` must have, all of them and no others."""
        return frozenset(self.cond_spec)

    def example_inputs(self, batch: int = 1) -> tuple[Any, Any, Any]:
        """Return abstract (x, noise, cond) for a batch."""
        shape = lambda s: jax.ShapeDtypeStruct((batch, *s.shape), s.dtype)  # noqa: E731
        x = jax.ShapeDtypeStruct((batch, *self.spec.shape), jnp.float32)
        noise = jax.ShapeDtypeStruct((batch,), jnp.float32)
        return x, noise, jax.tree.map(shape, dict(self.cond_spec))

    def init(self, key: jax.Array) -> Params:
        """Return fresh parameters: a plain nested dict of float32 arrays."""
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.example_inputs())
        # One program instead of thousands of small ones; inside another jit this is inlined.
        return jax.jit(lambda key: self.module.init(key, *zeros, train=False)["params"])(key)

    def project(self, params: Params) -> Params:
        """Return parameters as training keeps them after each step; a network may hold its weights to a norm."""
        return params

    def shapes(self) -> Params:
        """Return the parameters' shapes and dtypes, at no memory."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def num_params(self) -> int:
        """Return the number of parameters, at no memory."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes()))

    def apply(
        self,
        params: Params,
        x: jax.Array,
        noise: jax.Array,
        cond: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Run the network.

        Args:
          params: as from `init`.
          x: [B, H, W, C] float32, the scaled noisy image.
          noise: [B] float32, the noise level in the units the network was trained with.
          cond: exactly the keys in `cond_keys`, arrays [B, ...] as `cond_spec` says.
          train: whether dropout is on; `rngs={"dropout": key}` is then needed.

        Returns:
          [B, H, W, C_out] float32.

        Raises:
          ConfigError: missing, extra or misshapen conditioning, or channels other than the network's.
          flax.errors.InvalidRngError: training with dropout, without its key.
        """
        cond = {} if cond is None else dict(cond)
        if x.ndim != 4 or x.shape[-1] != self.spec.channels:
            raise ConfigError(f"the network takes images [B, H, W, {self.spec.channels}], got the shape {x.shape}")
        if noise.shape != x.shape[:1]:
            raise ConfigError(f"the network takes a noise level for each image, [{x.shape[0]}], got the shape {noise.shape}")
        check_conditioning(self.cond_spec, cond, x.shape[0])
        return self.module.apply({"params": params}, x, noise, cond, train=train, rngs=dict(rngs or {}))


# Where activations live on a mesh: set by whoever traces the program, read by the blocks of the networks --------------

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
