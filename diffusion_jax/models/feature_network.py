"""A network with several named outputs and no randomness, made functional: what metrics see images through."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network of float32 images [B, H, W, C], resized and normalised already.

    Matrix products and convolutions run in full float32 on every device: an accelerator's shorter default changes
    features in the third digit, and so the distances between them.

    Attributes:
      module: a Linen module called as `module(x)` that returns a dict of float32 arrays [B, D].
      image_shape: (H, W, C) of x.
    """

    module: nn.Module
    image_shape: tuple[int, int, int]

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: a plain nested dict of float32 arrays."""
        zeros = jnp.zeros((1, *self.image_shape))
        return jax.jit(lambda key: self.module.init(key, zeros)["params"])(key)

    def shapes(self) -> Params:
        """The parameters' shapes and dtypes, at no memory."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def num_params(self) -> int:
        """The number of parameters, at no memory."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes()))

    def dims(self) -> dict[str, int]:
        """The width D of each output, at no memory."""
        x = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        return {name: found.shape[-1] for name, found in jax.eval_shape(self.apply, self.shapes(), x).items()}

    def apply(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """The outputs by name, float32 [B, D] each, for images float32 [B, H, W, C].

        Raises:
          ConfigError: images of another shape.
        """
        if x.shape[1:] != self.image_shape:
            raise ConfigError(f"{type(self.module).__name__} takes images [B, {str(self.image_shape)[1:-1]}], got {x.shape}")
        with jax.default_matmul_precision("highest"):
            return self.module.apply({"params": params}, x.astype(jnp.float32))
