"""What is trained and sampled together: process, network and conditioning, one file per family of systems."""

from __future__ import annotations

from diffusion_jax.systems.base import Batch, Request, System, from_config
from diffusion_jax.systems.consistency import Consistency
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.distillation import ProgressiveDistillation
from diffusion_jax.systems.generation import Generation
from diffusion_jax.systems.images import to_float, to_uint8
from diffusion_jax.systems.noisy_classifier import NoisyClassifier
from diffusion_jax.systems.palette import Palette
from diffusion_jax.systems.sampling import Sampling
from diffusion_jax.systems.super_resolution import SuperResolution
from diffusion_jax.systems.text import TextGeneration, TextSuperResolution
from diffusion_jax.systems.uncertain_generation import UncertainGeneration

__all__ = [
    "Batch",
    "Consistency",
    "Diffusion",
    "Generation",
    "NoisyClassifier",
    "ProgressiveDistillation",
    "Palette",
    "Request",
    "Sampling",
    "SuperResolution",
    "System",
    "TextGeneration",
    "TextSuperResolution",
    "UncertainGeneration",
    "from_config",
    "to_float",
    "to_uint8",
]
