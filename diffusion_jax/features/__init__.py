"""Feature networks with their preprocessing, and small classifiers trained on the data themselves."""

from __future__ import annotations

from diffusion_jax.features.classifier import Judge, agreement, train_classifier
from diffusion_jax.features.extractor import Extractor

__all__ = ["Extractor", "Judge", "agreement", "train_classifier"]
