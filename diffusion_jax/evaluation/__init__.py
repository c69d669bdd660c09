"""Samples of trained runs, and what can be said of them: a small classifier's opinion, distances, held-out loss."""

from __future__ import annotations

from diffusion_jax.evaluation.classifier import Judge, agreement, train_classifier
from diffusion_jax.evaluation.evaluator import Evaluator, evaluate_run
from diffusion_jax.evaluation.frechet import Moments, frechet_distance
from diffusion_jax.evaluation.generate import Generator
from diffusion_jax.evaluation.given import evaluate_samples
from diffusion_jax.evaluation.held_out import bits_per_dim, held_out_loss
from diffusion_jax.evaluation.measure import measure
from diffusion_jax.evaluation.points import Point, expand
from diffusion_jax.evaluation.runs import Runs, find
from diffusion_jax.evaluation.sample_sets import SampleSet, open_samples
from diffusion_jax.evaluation.samples import SampleFolder
from diffusion_jax.evaluation.settings import Settings
from diffusion_jax.evaluation.subject import Subject

__all__ = [
    "Evaluator",
    "Generator",
    "Judge",
    "Moments",
    "Point",
    "Runs",
    "SampleFolder",
    "SampleSet",
    "Settings",
    "Subject",
    "agreement",
    "bits_per_dim",
    "evaluate_run",
    "evaluate_samples",
    "expand",
    "find",
    "frechet_distance",
    "held_out_loss",
    "measure",
    "open_samples",
    "train_classifier",
]
