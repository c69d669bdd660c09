"""What is trained and sampled together: process, network, conditioners, codec and objective."""

from __future__ import annotations

from diffusion_jax.systems.base import (
    Batch,
    Classifies,
    Denoises,
    Distils,
    PlansSteps,
    Projects,
    Reports,
    Request,
    Samples,
    System,
    ability,
    check_request,
    from_config,
    request_of,
)
from diffusion_jax.systems.bound import Bound
from diffusion_jax.systems.codecs import Binary, Codec, Pixels, to_float, to_uint8
from diffusion_jax.systems.conditioners import Conditioner, Flag, ImageAndMask, Labels, LowRes, Text, Vector
from diffusion_jax.systems.consistency import Consistency
from diffusion_jax.systems.denoising import Denoising, Objective
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.distillation import ProgressiveDistillation
from diffusion_jax.systems.noisy_classifier import NoisyClassifier
from diffusion_jax.systems.sampling import Sampling

__all__ = [
    "Batch",
    "Binary",
    "Bound",
    "Classifies",
    "Codec",
    "Conditioner",
    "Consistency",
    "Denoises",
    "Denoising",
    "Diffusion",
    "Distils",
    "Flag",
    "ImageAndMask",
    "Labels",
    "LowRes",
    "NoisyClassifier",
    "Objective",
    "Pixels",
    "PlansSteps",
    "ProgressiveDistillation",
    "Projects",
    "Reports",
    "Request",
    "Samples",
    "Sampling",
    "System",
    "Text",
    "Vector",
    "ability",
    "check_request",
    "from_config",
    "request_of",
    "to_float",
    "to_uint8",
]
