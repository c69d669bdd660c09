"""The Inception Score: sure of each image, and different over images."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from diffusion_jax.errors import ConfigError
from diffusion_jax.metrics.checks import feature_rows
from diffusion_jax.metrics.kid import Score


def inception_score(
    logits: Any, *, split_size: int = 5000, splits: int | None = None, shuffle_seed: int | None = None
) -> Score:
    """exp(mean over x of KL(p(y|x) || mean of p(y|x))), as mean and standard deviation over splits.

    Args:
      logits: [N, K]; published scores take the 1008 logits of the 2015 Inception graph without its bias.
      split_size: images in a split; the last split may be smaller, as the ADM evaluator has it.
      splits: instead, so many splits of (almost) equal size, as the first implementations have it.
      shuffle_seed: shuffle the images first, in the order in which torch-fidelity does; None keeps their order, which
        matters where classes come one after another.

    Raises:
      ConfigError: no splits, or more splits than images.
      DataError: logits that are not [N, K], NaN or infinite.

    Sources: Salimans et al. 2016, section 4 (arXiv 1606.03498); Barratt & Sharma 2018 on splits (arXiv 1801.01973).

    >>> inception_score([[100.0, 0.0], [0.0, 100.0]])  # two classes, certain of each
    Score(mean=2.0, std=0.0)
    """
    rows = feature_rows(logits, "logits")
    if splits is None:
        if split_size < 1:
            raise ConfigError(f"the Inception Score needs split_size of at least 1, got {split_size}")
        edges = [*range(0, len(rows), split_size), len(rows)]
    else:
        if not 1 <= splits <= len(rows):
            raise ConfigError(f"the Inception Score of {len(rows)} images cannot have {splits} splits")
        edges = [number * len(rows) // splits for number in range(splits + 1)]
    if shuffle_seed is not None:
        rows = rows[np.random.RandomState(shuffle_seed).permutation(len(rows))]
    scores = [_of_split(rows[start:stop]) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return Score(float(np.mean(scores)), float(np.std(scores)))


def _of_split(logits: np.ndarray) -> float:
    log_p = special.log_softmax(logits.astype(np.float64), axis=1)
    log_marginal = special.logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(1).mean()))
