"""Fitted examples, made when they are first needed and kept in memory while a limit lasts."""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Any

import numpy as np

from diffusion_jax.data.sources.base import Example, Source
from diffusion_jax.data.transforms import Fit
from diffusion_jax.errors import DataError
from diffusion_jax.values import NonNegative, check

_LOG = logging.getLogger(__name__)
_GIB = 2**30


class Cache:
    """The fitted examples of sources, shared by all pipelines that are given it.

    Args:
      gib: how much memory they may take together, in GiB; what does not fit is fitted anew whenever it is needed.

    Raises:
      ConfigError: less than 0.
    """

    def __init__(self, gib: float = 1.0) -> None:
        check("data: cache", NonNegative, gib)
        self._left, self._gib, self._lock = gib * _GIB, gib, threading.Lock()
        self._fitted: dict[tuple[int, Fit], Fitted] = {}

    def __reduce__(self) -> Any:
        return Cache, (0,)  # in a worker process it keeps nothing

    def fitted(self, source: Source, fit: Fit) -> Fitted:
        """Return the examples of a source with their images fitted: the same object for the same source and fit."""
        with self._lock:
            return self._fitted.setdefault((id(source), fit), Fitted(source, fit, self))

    def take(self, name: str, example: Example) -> bool:
        """Return whether there is room for an example, and take it; the first time that there is none is logged."""
        size = sum(value.nbytes for value in example.values() if isinstance(value, np.ndarray))
        with self._lock:
            before, self._left = self._left, self._left - size
        if self._gib and before >= 0 > self._left:
            _LOG.warning("Images of %s fill the %g GiB of data.cache: the others are read anew each time.", name, self._gib)
        return before >= size


class Fitted:
    """A source with its images (and masks) fitted; any number of threads may read it.

    Args:
      cache: where there is room for examples, or not.
    """

    def __init__(self, source: Source, fit: Fit, cache: Cache) -> None:
        self._source, self._fit, self._cache = source, fit, cache
        self._kept: dict[int, Example] = {}
        self._locks = [threading.Lock() for _ in range(64)]

    def __reduce__(self) -> Any:
        return Fitted, (self._source, self._fit, self._cache)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        index = int(index)
        if index in self._kept:
            return self._kept[index]
        with self._locks[index % len(self._locks)]:  # two threads do not read one image
            if index not in self._kept:
                example = self._prepare(index)
                if not self._cache.take(self._source.name, example):
                    return example
                self._kept[index] = example
            return self._kept[index]

    def _prepare(self, index: int) -> Example:
        example = dict(self._source[index])
        problem = _problem(example, self._source.num_classes)
        if problem:
            raise DataError(f"example {index} of the source {self._source.name!r} {problem}")
        try:
            example["image"] = self._fit(example["image"])
            if "mask" in example:
                example["mask"] = dataclasses.replace(self._fit, channels=1)(example["mask"])
        except DataError as error:
            raise DataError(f"example {index} of the source {self._source.name!r}: {error}") from error
        return example


def _problem(example: Example, num_classes: int) -> str | None:
    """What is wrong with a source's example; None if nothing is."""
    for name in ("image", "mask"):
        image = example.get(name, None if name == "image" else _EMPTY)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            return f"has the {name} {got}, not uint8 [h, w, c] in 0 to 255"
    label = example.get("label", 0)
    if not isinstance(label, int | np.integer) or isinstance(label, bool):
        return f"has the label {label!r}, not a whole number"
    if "label" in example and not 0 <= label < num_classes:
        return f"has the label {label}, outside 0 to {num_classes - 1}"
    return None


_EMPTY = np.zeros((0, 0, 1), np.uint8)
