"""What can be said of trained runs and of samples: metrics over checkpoints and settings, results, reports."""

from __future__ import annotations

from diffusion_jax.evaluation.evaluator import Evaluator, evaluate_run, evaluate_samples
from diffusion_jax.evaluation.held_out import bits_per_dim, held_out_loss
from diffusion_jax.evaluation.inputs import MetricInputs, Settings
from diffusion_jax.evaluation.measuring import measure
from diffusion_jax.evaluation.sweep import Case, expand

__all__ = [
    "Evaluator",
    "Case",
    "Settings",
    "MetricInputs",
    "bits_per_dim",
    "evaluate_run",
    "evaluate_samples",
    "expand",
    "held_out_loss",
    "measure",
]
