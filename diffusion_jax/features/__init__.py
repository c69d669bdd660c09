"""Feature networks with their preprocessing, and small classifiers trained on the data themselves."""

from __future__ import annotations

from diffusion_jax.features.classifier import TrainedClassifier, agreement, train_classifier
from diffusion_jax.features.extractor import Extractor
from diffusion_jax.features.networks import small

__all__ = ["Extractor", "TrainedClassifier", "agreement", "small", "train_classifier"]
