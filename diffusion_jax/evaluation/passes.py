"""Passes of images through a feature network: the device works on a batch while the host takes in the one before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.frechet import Moments
from diffusion_jax.evaluation.metrics.moments import add_features, merge_processes

BATCH = 256
_SUMMED = ("pool", "spatial")


def _limited(batches: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """The batches up to so many images."""
    left = limit
    for images in batches:
        if left is not None:
            images = images[:left]
            left -= len(images)
        if not len(images):
            return
        yield images


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each asked for before the one before it is used: what is asked for is computed meanwhile."""
    waiting = next(items, None)
    while waiting is not None:
        after = next(items, None)
        yield waiting
        waiting = after


def moments_of(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> dict[str, Moments]:
    """Moments in one pass, of the outputs "pool" and, where the network has it, "spatial"; the images are not kept.

    Where there are several processes each takes its turn of the batches, and all get the moments of all.

    Args:
      batches: uint8 [n, H, W, C], the same on every process.
      limit: stop after this many images.
    """
    moments = {name: Moments() for name in _SUMMED if name in extractor.dims}
    turns = itertools.islice(_limited(batches, limit), jax.process_index(), None, jax.process_count())
    for outputs in _one_ahead(map(extractor, turns)):
        for name, sums in moments.items():
            add_features(sums, outputs[name])
    return {name: merge_processes(sums) for name, sums in moments.items()}


def features_of(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> dict[str, np.ndarray]:
    """All outputs by name, float32 [N, D], on every process; the images are not kept."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in extractor.dims}
    for outputs in _one_ahead(map(extractor, _limited(batches, limit))):
        for name, rows in outputs.items():
            parts[name].append(np.asarray(rows))
    return {name: np.concatenate(rows) for name, rows in parts.items()}
