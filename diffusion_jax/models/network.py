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
from diffusion_jax.models.checks import check_conditioning

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

    def project(self, params: Params) -> Params:
        """Parameters as training keeps them after each step; a network may hold its weights to a norm."""
        return params

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
          cond: exactly the keys in `cond_keys`, arrays [B, ...] as `cond_spec` says.
          train: whether dropout is on; `rngs={"dropout": key}` is then needed.

        Returns:
          [B, H, W, C_out] float32.

        Raises:
          ConfigError: missing, extra or misshapen conditioning, or channels other than the network's.
          flax.errors.InvalidRngError: training with dropout, without its key.
        """
        cond = {} if cond is None else dict(cond)
        if x.ndim != 4 or x.shape[-1] != self.image_shape[-1]:
            raise ConfigError(f"the network takes images [B, H, W, {self.image_shape[-1]}], got the shape {x.shape}")
        if noise.shape != x.shape[:1]:
            raise ConfigError(f"the network takes a noise level for each image, [{x.shape[0]}], got the shape {noise.shape}")
        check_conditioning(self.cond_spec, cond, x.shape[0])
        return self.module.apply({"params": params}, x, noise, cond, train=train, rngs=dict(rngs or {}))
