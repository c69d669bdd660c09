"""The Frechet distance between two sets of features, each summed up by its mean and covariance."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from diffusion_jax.errors import DataError


@dataclasses.dataclass
class Moments:
    """Mean and covariance of features, in float64 and in one pass over the data.

    Attributes:
      count: rows seen.
      mean: float64 [D].
      scatter: float64 [D, D], the sum of outer products of deviations from the mean.
    """

    count: int = 0
    mean: Any = 0.0
    scatter: Any = 0.0

    def add(self, features: Any) -> Moments:
        """Take rows [N, D] in, by the pairwise update of Chan et al. 1979, which does not cancel digits."""
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2:
            raise DataError(f"features must be [N, D], got the shape {rows.shape}")
        if not rows.size:
            return self
        mean = rows.mean(0)
        centred = rows - mean
        total = self.count + len(rows)
        difference = mean - self.mean
        self.scatter = self.scatter + centred.T @ centred + np.outer(difference, difference) * (self.count * len(rows) / total)
        self.mean = self.mean + difference * (len(rows) / total)
        self.count = total
        return self

    @property
    def covariance(self) -> np.ndarray:
        """float64 [D, D], with the denominator N - 1."""
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), of the Gaussians with these moments.

    The trace of the root is that of (S_1^(1/2) S_2 S_1^(1/2))^(1/2), symmetric and positive semidefinite: eigenvalues
    are real, and singular covariances (fewer samples than features) need no jitter.

    Sources: Dowson & Landau 1982; Heusel et al. 2017 (arXiv 1706.08500).

    >>> left = Moments().add([[0.0], [2.0]])
    >>> right = Moments().add([[3.0], [5.0]])
    >>> frechet_distance(left, right)
    9.0
    """
    if np.shape(first.mean) != np.shape(second.mean):
        raise DataError(f"features of different widths: {np.shape(first.mean)} and {np.shape(second.mean)}")
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ second.covariance @ root)
    trace_of_root = np.sqrt(np.clip(inner, 0, None)).sum()
    offset = first.mean - second.mean
    total = offset @ offset + np.trace(first.covariance) + np.trace(second.covariance) - 2 * trace_of_root
    return float(max(total, 0.0))
