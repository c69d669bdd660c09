"""A vector of numbers: how an image was augmented, say, or its original size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.data import Pipeline
from diffusion_jax.data.augment import LABELS
from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import register
from diffusion_jax.systems.conditioners.base import Conditioner
from diffusion_jax.systems.sampling import Sampling
from diffusion_jax.values import Count


@register("conditioner", "vector")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector(Conditioner):
    """A vector [B, dim] of each training batch, under `key`; samples, and held-out losses, get zeros.

    Args:
      key: of the batch and of the network's `cond`, which takes it as one of its `vectors`, or by a field `key`_dim.
      dim: its length; of `data.augment`'s labels if left out.

    Source: of augmentation: Karras et al. 2022, appendix F.2 (arXiv 2206.00364).
    """

    key: str = "augment"
    dim: Count = LABELS

    name = "vector"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keys", frozenset({self.key}))

    def network_fields(self) -> dict[str, Any]:
        """Return the length of the vector."""
        return {f"{self.key}_dim": self.dim, "vectors": {self.key: self.dim}}

    def training(self, batch: Mapping[str, Any], key: jax.Array, train: bool) -> dict[str, Any]:
        """Return the batch's vectors in training, else zeros."""
        return {self.key: jnp.asarray(batch[self.key]) if train else jnp.zeros((len(batch["image"]), self.dim))}

    def sampling(self, request: Mapping[str, Any], key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict[str, Any]:
        """Return zeros."""
        return {self.key: jnp.zeros((indices.shape[0], self.dim))}

    def check_data(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` unless images are augmented, where it is the vector of how."""
        if self.key == "augment" and not pipeline.augment:
            raise ConfigError("the conditioner 'augment' needs augmented images: set data.augment to a probability above 0")
