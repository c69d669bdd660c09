"""Nearest neighbours among features: for pictures of what a sample may have been copied from."""

from __future__ import annotations

import numpy as np

_TILE = 4096


def nearest_rows(points: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows of `others` to each point, nearest first.

    Args:
      points: [N, D].
      others: [M, D], M at least `count`.

    Returns:
      (Euclidean distances float64 [N, count], indices int [N, count]).
    """
    points, others = (np.asarray(rows, np.float64) for rows in (points, others))
    norms = (others**2).sum(1)
    distances, indices = [], []
    for start in range(0, len(points), _TILE):
        part = points[start : start + _TILE]
        scores = norms - 2 * part @ others.T
        near = np.argpartition(scores, count - 1, axis=1)[:, :count] if count < len(others) else np.argsort(scores, 1)
        found = np.linalg.norm(part[:, None] - others[near], axis=-1)
        order = np.argsort(found, axis=1, kind="stable")
        distances.append(np.take_along_axis(found, order, axis=1))
        indices.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(distances), np.concatenate(indices)
