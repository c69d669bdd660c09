"""Images from noise, unconditional or by class."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.data.augment import LABELS
from diffusion_jax.registry import register
from diffusion_jax.systems.base import Batch, Request
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.sampling import Sampling


@register("system", "generation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(Diffusion):
    """Unconditional or class-conditional generation; the fields are those of `Diffusion`, and one.

    Args:
      augment: whether the network is told how its images were augmented (`data.augment`, "augment" [B, 9] of a training
        batch); samples, and held-out losses, are asked for without: all zeros.

    Sources: Ho et al. 2020 (arXiv 2006.11239); guidance and condition dropout: Ho & Salimans 2022 (arXiv 2207.12598);
    augmentation: Karras et al. 2022, appendix F.2 (arXiv 2206.00364).
    """

    augment: bool = False

    name = "generation"

    def _extra_fields(self) -> dict[str, Any]:
        return super()._extra_fields() | ({"augment_dim": LABELS} if self.augment else {})

    def _extra_keys(self) -> set[str]:
        return super()._extra_keys() | ({"augment"} if self.augment else set())

    def _training_cond(self, x0: jax.Array, batch: Batch, key: jax.Array, train: bool) -> dict[str, Any]:
        cond = super()._training_cond(x0, batch, key, train)
        if self.augment:
            cond["augment"] = jnp.asarray(batch["augment"]) if train else jnp.zeros((x0.shape[0], LABELS))
        return cond

    def _sampling_cond(self, request: Request, key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict[str, Any]:
        cond = super()._sampling_cond(request, key, indices, sampling)
        return cond | {"augment": jnp.zeros((indices.shape[0], LABELS))} if self.augment else cond
