"""Class labels as conditioning: the null label, dropout, and checks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError


def drop(labels: jax.Array, num_classes: int, probability: float, key: jax.Array) -> jax.Array:
    """Each label replaced, with a probability, by the null label `num_classes` (Ho & Salimans 2022, arXiv 2207.12598).

    Args:
      labels: int32 [B], in 0..num_classes-1.
    """
    dropped = jax.random.bernoulli(key, probability, labels.shape)
    return jnp.where(dropped, num_classes, labels)


def check(labels: Any, num_classes: int) -> None:
    """Raise a `ConfigError` that names the first label outside of 0..num_classes-1. Traced labels pass unseen."""
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    bad = np.flatnonzero((values < 0) | (values >= num_classes))
    if bad.size:
        raise ConfigError(
            f"label {values.flat[bad[0]]} is out of range: the model has {num_classes} classes, 0 to {num_classes - 1}"
        )
