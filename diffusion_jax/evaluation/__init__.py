"""Samples of trained runs, and what can be said of them: a small classifier's opinion, distances, held-out loss."""

from __future__ import annotations

from diffusion_jax.evaluation.classifier import Judge, agreement, train_classifier
from diffusion_jax.evaluation.evaluator import Settings, evaluate_run, measure
from diffusion_jax.evaluation.frechet import Moments, frechet_distance
from diffusion_jax.evaluation.generate import Generator
from diffusion_jax.evaluation.held_out import bits_per_dim, held_out_loss
from diffusion_jax.evaluation.runs import Runs, find
from diffusion_jax.evaluation.samples import SampleFolder

__all__ = [
    "Generator",
    "Judge",
    "Moments",
    "Runs",
    "SampleFolder",
    "Settings",
    "agreement",
    "bits_per_dim",
    "evaluate_run",
    "find",
    "frechet_distance",
    "held_out_loss",
    "measure",
    "train_classifier",
]
