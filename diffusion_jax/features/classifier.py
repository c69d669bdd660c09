"""A small classifier trained on the same real images: its features and its opinion of samples."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.errors import DataError
from diffusion_jax.features.augment import shift_and_rotate
from diffusion_jax.models import Classifier, small_classifier
from diffusion_jax.rng import named

_EVALUATION_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier.

    Attributes:
      network: the classifier.
      params: its parameters.
      accuracy: the share of held-out images that it classifies correctly, or None without held-out images.
      num_held_out: how many those were.
    """

    network: Classifier
    params: Any
    accuracy: float | None = None
    num_held_out: int = 0

    @functools.cached_property
    def _apply(self) -> Any:
        return jax.jit(lambda params, x: self.network.apply(params, _to_float(x)))

    def look(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(labels int [N], features float32 [N, F]) of images uint8 [N, H, W, C]."""
        classes, features = [], []
        for start in range(0, len(images), _EVALUATION_BATCH):
            part = images[start : start + _EVALUATION_BATCH]
            padded = np.concatenate([part, np.repeat(part[-1:], _EVALUATION_BATCH - len(part), axis=0)])
            logits, vectors = self._apply(self.params, padded)
            classes.append(np.asarray(logits.argmax(-1))[: len(part)])
            features.append(np.asarray(vectors)[: len(part)])
        return np.concatenate(classes), np.concatenate(features)


def agreement(judge: Judge, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images uint8 [N, H, W, C] in which the judge sees the class in `labels` [N]."""
    return float((judge.look(images)[0] == np.asarray(labels)).mean())


def _to_float(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 127.5 - 1


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Judge:
    """Train a small classifier with AdamW on images that are shifted, turned and zoomed a little.

    Args:
      images: uint8 [N, H, W, C], H = W.
      labels: int [N], in 0..num_classes-1.
      held_out: (images, labels) on which the accuracy is measured.
      steps: of the optimiser; the learning rate warms up and decays as a cosine over them.

    Raises:
      DataError: no images, or labels out of range.
    """
    if not len(images):
        raise DataError("the classifier has no training images")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"labels from {labels.min()} to {labels.max()}, but the data say {num_classes} classes")
    network = small_classifier(images.shape[1], images.shape[3], num_classes)
    key, rng = jax.random.key(seed), np.random.default_rng(seed)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 10), steps)
    optimizer = optax.adamw(schedule, weight_decay=0.01)
    params = jax.jit(network.init)(named(key, "init"))
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def update(params: Any, state: Any, x: jax.Array, y: jax.Array, step: int) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            logits, _ = network.apply(params, x, train=True, rngs={"dropout": named(key, "dropout", step)})
            targets = optax.smooth_labels(jax.nn.one_hot(y, num_classes), 0.05)
            return optax.softmax_cross_entropy(logits, targets).mean()

        updates, state_ = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state_

    batch_size = min(batch_size, len(images))
    for step in range(steps):
        rows = _rows(len(images), batch_size, step, seed)
        x = shift_and_rotate(images[rows].astype(np.float32) / 127.5 - 1, rng, pixels=images.shape[1] / 16)
        params, state = update(params, state, x, labels[rows], step)
    judge = Judge(network, params)
    if held_out is None or not len(held_out[0]):
        return judge
    return dataclasses.replace(judge, accuracy=agreement(judge, *held_out), num_held_out=len(held_out[0]))


def _rows(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The rows of a batch: a new permutation every epoch, the short rest of an epoch left out."""
    epoch, place = divmod(step, count // batch_size)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[place * batch_size : (place + 1) * batch_size]
