"""Kernel Inception Distance: an unbiased distance between two sets of features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.metrics.checks import feature_rows, same_width


class Score(NamedTuple):
    """A mean over subsets or splits, and their standard deviation (denominator: their number)."""

    mean: float
    std: float


def cubic_mmd(first: Any, second: Any) -> float:
    """The unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3; it may be negative.

    Args:
      first: [m, D].
      second: [n, D], m and n at least 2. Sums are in float64.

    Source: Binkowski et al. 2018, section 3 (arXiv 1801.01401).
    """
    first, second = (feature_rows(rows).astype(np.float64) for rows in (first, second))
    same_width(first, second)
    if min(len(first), len(second)) < 2:
        raise DataError(f"KID needs at least 2 samples of either side, got {len(first)} and {len(second)}")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(first) + within(second) - 2 * kernel(first, second).mean())


def kid(generated: Any, real: Any, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> Score:
    """The mean of `cubic_mmd` over random subsets, and its standard deviation over them. Published values are often x 1000.

    The subsets of a seed are those that torch-fidelity draws, so that the numbers can be compared digit by digit.

    Args:
      generated, real: features [N, D] of each side, such as pool_3.
      subsets: how many pairs of subsets.
      subset_size: samples in each, without repetition.
      seed: of the subsets, in 0 .. 2^32 - 1.

    Raises:
      DataError: fewer samples than `subset_size`, or features of different widths.

    Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """
    if subsets < 1 or subset_size < 2:
        raise ConfigError(f"KID needs subsets of at least 1 and subset_size of at least 2, got {subsets} and {subset_size}")
    generated, real = feature_rows(generated), feature_rows(real)
    same_width(generated, real)
    fewest = min(len(generated), len(real))
    if fewest < subset_size:
        raise DataError(f"KID with subset_size {subset_size} of {fewest} samples: use subset_size={fewest}, or more samples")
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows = [rng.choice(len(features), subset_size, replace=False) for features in (generated, real)]
        values.append(cubic_mmd(generated[rows[0]], real[rows[1]]))
    return Score(float(np.mean(values)), float(np.std(values)))
