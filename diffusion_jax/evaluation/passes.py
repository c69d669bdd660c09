"""Passes of images through a feature network: the device works on a batch while the host takes in the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.frechet import Moments
from diffusion_jax.evaluation.metrics.moments import add_features

BATCH = 256
_SUMMED = ("pool", "spatial")


def extract(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> Iterator[tuple[int, Any]]:
    """(images in the batch, outputs on the device) for each batch; the last is filled up, so that one program serves all.

    Args:
      batches: uint8 [n, H, W, C], n at most `BATCH`.
      limit: stop after this many images.
    """
    left = limit
    for images in batches:
        if left is not None:
            images = images[:left]
            left -= len(images)
        if not len(images):
            return
        missing = BATCH - len(images)
        filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        yield len(images), extractor(filled)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each asked for before the one before it is used: what is asked for is computed meanwhile."""
    waiting = next(items, None)
    while waiting is not None:
        after = next(items, None)
        yield waiting
        waiting = after


def moments_of(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> dict[str, Moments]:
    """Moments in one pass, of the outputs "pool" and, where the network has it, "spatial"; the images are not kept."""
    moments = {name: Moments() for name in _SUMMED if name in extractor.dims}
    for count, outputs in _one_ahead(extract(extractor, batches, limit)):
        for name, sums in moments.items():
            add_features(sums, np.asarray(outputs[name])[:count])
    return moments


def features_of(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> dict[str, np.ndarray]:
    """All outputs by name, float32 [N, D]; the images are not kept."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in extractor.dims}
    for count, outputs in _one_ahead(extract(extractor, batches, limit)):
        for name, rows in outputs.items():
            parts[name].append(np.asarray(rows)[:count])
    return {name: np.concatenate(rows) for name, rows in parts.items()}
