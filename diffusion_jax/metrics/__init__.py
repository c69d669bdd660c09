"""Metrics of samples, given features, logits or images; each is a function, and none knows where its input came from."""

from __future__ import annotations

from diffusion_jax.metrics.feature_scores import Score, clip_score, cubic_mmd, inception_score, kid
from diffusion_jax.metrics.frechet import (
    Gaussian,
    Moments,
    add_features,
    frechet_distance,
    local_rows,
    merge_processes,
    warn_if_few,
)
from diffusion_jax.metrics.images import consistency, psnr, ssim
from diffusion_jax.metrics.manifolds import PrecisionRecall, precision_recall
from diffusion_jax.metrics.statistics_file import (
    Meta,
    Statistics,
    check_compatible,
    read_statistics,
    write_statistics,
)
from diffusion_jax.metrics.uncertainty import (
    Extrapolation,
    Interval,
    Verdict,
    bootstrap,
    distinguishable,
    frechet_infinity,
    frechet_interval,
    moments_of,
)

__all__ = [
    "Extrapolation",
    "Gaussian",
    "Interval",
    "Meta",
    "Moments",
    "PrecisionRecall",
    "Score",
    "Statistics",
    "Verdict",
    "add_features",
    "bootstrap",
    "check_compatible",
    "clip_score",
    "consistency",
    "cubic_mmd",
    "distinguishable",
    "frechet_distance",
    "frechet_infinity",
    "frechet_interval",
    "inception_score",
    "kid",
    "local_rows",
    "merge_processes",
    "moments_of",
    "precision_recall",
    "psnr",
    "read_statistics",
    "ssim",
    "warn_if_few",
    "write_statistics",
]
