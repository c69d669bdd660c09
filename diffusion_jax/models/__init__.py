"""Networks: Flax Linen modules made functional. They know no diffusion mathematics."""

from __future__ import annotations

from diffusion_jax.models import presets
from diffusion_jax.models.classifier import Classifier, small_classifier
from diffusion_jax.models.network import Network
from diffusion_jax.models.partitioning import activation_sharding
from diffusion_jax.models.presets import *  # noqa: F403
from diffusion_jax.models.unet import unet

__all__ = ["Classifier", "Network", "activation_sharding", "small_classifier", "unet", *presets.__all__]
