"""A Flax module made functional: `init(key) -> params` and `apply(params, x, noise, cond) -> output`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network of known input shapes, whose parameters are its only state.

    Attributes:
      module: a Linen module called as `module(x, noise, cond, train=...)`.
      image_shape: (H, W, C) of x; fully convolutional networks also run on other sizes.
      cond_spec: the conditioning keys that the network takes, each with the shape (without the batch) and dtype of its
        array, or a dict of such.
    """

    module: nn.Module
    image_shape: tuple[int, int, int]
    cond_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cond_keys(self) -> frozenset[str]:
        """The keys that `cond` must have, all of them and no others."""
        return frozenset(self.cond_spec)

    def example_inputs(self, batch: int = 1) -> tuple[Any, Any, Any]:
        """Abstract (x, noise, cond) for a batch."""
        shape = lambda s: jax.ShapeDtypeStruct((batch, *s.shape), s.dtype)  # noqa: E731
        x = jax.ShapeDtypeStruct((batch, *self.image_shape), jnp.float32)
        noise = jax.ShapeDtypeStruct((batch,), jnp.float32)
        return x, noise, jax.tree.map(shape, dict(self.cond_spec))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: a plain nested dict of float32 arrays."""
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.example_inputs())
        # One program instead of thousands of small ones; inside another jit this is inlined.
        return jax.jit(lambda key: self.module.init(key, *zeros, train=False)["params"])(key)

    def shapes(self) -> Params:
        """The parameters' shapes and dtypes, at no memory."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def num_params(self) -> int:
        """The number of parameters, at no memory."""
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
          cond: exactly the keys in `cond_keys`.
          train: whether dropout is on; `rngs={"dropout": key}` is then needed.

        Returns:
          [B, H, W, C_out] float32.

        Raises:
          ConfigError: missing, extra or misshapen conditioning, or channels other than the network's.
        """
        cond = {} if cond is None else dict(cond)
        self._check(x, cond)
        return self.module.apply({"params": params}, x, noise, cond, train=train, rngs=dict(rngs or {}))

    def _check(self, x: jax.Array, cond: Mapping[str, Any]) -> None:
        missing, extra = sorted(self.cond_keys - set(cond)), sorted(set(cond) - self.cond_keys)
        if missing or extra:
            raise ConfigError(
                f"the network takes the conditioning {sorted(self.cond_keys) or 'none'}: "
                f"missing {missing or 'nothing'}, not known {extra or 'nothing'}"
            )
        if x.ndim != 4 or x.shape[-1] != self.image_shape[-1]:
            raise ConfigError(f"the network takes images [B, H, W, {self.image_shape[-1]}], got the shape {x.shape}")
        for key, spec in self.cond_spec.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(spec):
                value = cond[key]
                for part in path:
                    if not isinstance(value, Mapping) or part.key not in value:
                        raise ConfigError(f"the conditioning {key!r} needs the entries {sorted(spec)}")
                    value = value[part.key]
                if value.ndim != len(leaf.shape) + 1 or value.shape[0] != x.shape[0]:
                    raise ConfigError(
                        f"the conditioning {key!r} must have the shape [{x.shape[0]}, "
                        f"{', '.join(map(str, leaf.shape))}], got {list(value.shape)}"
                    )
