"""Passes of images through a feature network: the device works on a batch while the host takes in the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from diffusion_jax.features.extractor import Extractor

BATCH = 256


def limited(batches: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """The batches up to so many images."""
    left = limit
    for images in batches:
        if left is not None:
            images = images[:left]
            left -= len(images)
        if not len(images):
            return
        yield images


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each asked for before the one before it is used: what is asked for is computed meanwhile."""
    waiting = next(items, None)
    while waiting is not None:
        after = next(items, None)
        yield waiting
        waiting = after


def features_of(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> dict[str, np.ndarray]:
    """All outputs by name, float32 [N, D], on every process; the images are not kept."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in extractor.dims}
    for outputs in one_ahead(map(extractor, limited(batches, limit))):
        for name, rows in outputs.items():
            parts[name].append(np.asarray(rows))
    return {name: np.concatenate(rows) for name, rows in parts.items()}
