"""A small classifier trained on the same real images: its features and its opinion of samples, kept beside the run."""

from __future__ import annotations

import dataclasses
import functools
import logging
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, identity, processes
from diffusion_jax.data.record import brief, described
from diffusion_jax.errors import DataError
from diffusion_jax.files import replacing
from diffusion_jax.lazy import lazy
from diffusion_jax.models import Classifier, small_classifier
from diffusion_jax.rng import named

optax = lazy("optax")

_LOG = logging.getLogger(__name__)

_EVALUATION_BATCH = 256
_RECIPE = 1  # raised when the classifier or its training changes: what was kept before is then trained anew
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_LIMIT = 20_000  # images in memory
_SEED = 0


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
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


def agreement(classifier: TrainedClassifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images uint8 [N, H, W, C] in which the classifier sees the class in `labels` [N]."""
    return float((classifier.look(images)[0] == np.asarray(labels)).mean())


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
) -> TrainedClassifier:
    """Train a small classifier with AdamW on images that are shifted, turned and zoomed a little.

    Args:
      images: uint8 [N, H, W, C].
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
    network = small_classifier(images.shape[1:3], images.shape[3], num_classes)
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

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = _rows(len(images), batch_size, step, seed)
        x = images[rows].astype(np.float32) / 127.5 - 1
        return shift_and_rotate(x, rng, pixels=min(images.shape[1:3]) / 16), labels[rows]

    with ThreadPoolExecutor(1) as ahead:  # one thread, so that its random numbers come in order
        waiting = ahead.submit(batch, 0)
        for step in range(steps):
            x, y = waiting.result()
            waiting = ahead.submit(batch, step + 1) if step + 1 < steps else waiting
            params, state = update(params, state, x, y, step)
    classifier = TrainedClassifier(network, params)
    if held_out is None or not len(held_out[0]):
        return classifier
    return dataclasses.replace(classifier, accuracy=agreement(classifier, *held_out), num_held_out=len(held_out[0]))


def _rows(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The rows of a batch: a new permutation every epoch, the short rest of an epoch left out."""
    epoch, place = divmod(step, count // batch_size)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[place * batch_size : (place + 1) * batch_size]


def gather(pipeline: data.Pipeline, limit: int = _LIMIT) -> dict[str, np.ndarray]:
    """Images uint8 [N, H, W, C] (and labels) of a pipeline, in order, at most `limit`."""
    batches = list(pipeline.one_pass(256, limit=limit))
    names = [name for name in ("image", "label") if name in batches[0]]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def classifier_of_data(workdir: str | Path, source: data.Data, *, steps: int = 1000) -> TrainedClassifier:
    """Return the classifier of a run's data: read from the run's directory, or trained on the training split and kept there.

    Args:
      source: the run's data; the split "test" is held out.
      steps: of training.

    Raises:
      DataError: data without classes.
    """
    train, test = (source.pipeline(split) for split in ("train", "test"))
    if not train.num_classes:
        raise DataError(f"the source {train.source.name!r} has no classes to train a classifier on")
    found = brief(described(train.source))  # other data in the same place have a classifier of their own
    made_of = {"recipe": _RECIPE, "steps": steps, "data": identity.of_data(source.config), "found": found}
    path = Path(workdir) / "classifier" / f"{identity.digest(made_of, 12)}.npz"
    network = small_classifier(train.spec.size, train.spec.channels, train.num_classes)
    kept = _read(path, network)
    if kept is not None:
        return kept
    _LOG.info("Training a classifier on %d images of %s (once; kept in %s).", len(train), train.source.name, path)
    real, held_out = gather(train), gather(test)
    classifier = train_classifier(
        real["image"], real["label"], train.num_classes,
        held_out=(held_out["image"], held_out["label"]), steps=steps, seed=_SEED,
    )  # fmt: skip
    _LOG.info("The classifier is right on %.1f %% of %d held-out images.", 100 * classifier.accuracy, classifier.num_held_out)
    if processes.is_first():
        _write(path, classifier)
    return classifier


def _write(path: Path, classifier: TrainedClassifier) -> None:
    leaves = {f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(classifier.params))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, accuracy=classifier.accuracy, num_held_out=classifier.num_held_out, **leaves)
    except OSError as error:
        _LOG.warning("The classifier is not kept: cannot write %s (%s).", path, error.strerror)


def _read(path: Path, network: Any) -> TrainedClassifier | None:
    """The kept classifier, or None where there is none, or a damaged one."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    if not path.exists():
        return None
    try:
        with np.load(path) as kept:
            found = [kept[f"leaf{number}"] for number in range(len(leaves))]
            accuracy, count = float(kept["accuracy"]), int(kept["num_held_out"])
    except _DAMAGED as error:
        _LOG.warning("%s cannot be read (%s): training the classifier again.", path, error)
        return None
    if [leaf.shape for leaf in found] != [leaf.shape for leaf in leaves]:
        return None
    return TrainedClassifier(network, jax.tree.unflatten(structure, found), accuracy, count)


def shift_and_rotate(
    images: np.ndarray, rng: np.random.Generator, *, pixels: float = 2.0, degrees: float = 12.0, zoom: float = 0.1
) -> np.ndarray:
    """Each image moved, turned and zoomed by amounts of its own, uniform within the bounds; bilinear, edges repeated.

    Args:
      images: [B, H, W, C], floating.
      pixels: the largest shift along each axis.
      degrees: the largest rotation about the centre.
      zoom: the largest relative change of size.

    Returns:
      float32 [B, H, W, C].
    """
    batch, height, width, _ = images.shape
    angle = np.deg2rad(rng.uniform(-degrees, degrees, batch))
    scale = 1 / rng.uniform(1 - zoom, 1 + zoom, batch)
    shift = rng.uniform(-pixels, pixels, (2, batch))
    cos, sin = (scale * np.cos(angle))[:, None, None], (scale * np.sin(angle))[:, None, None]
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    rows = cos * y - sin * x + (height - 1) / 2 + shift[0][:, None, None]
    columns = sin * y + cos * x + (width - 1) / 2 + shift[1][:, None, None]
    return sample_bilinear(images, rows, columns)


def sample_bilinear(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The values of [B, H, W, C] images at fractional positions [B, h, w]; float32 [B, h, w, C]."""
    _, height, width, _ = images.shape
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    batch = np.arange(len(images))[:, None, None]
    upper = (1 - across) * images[batch, top, left] + across * images[batch, top, right]
    lower = (1 - across) * images[batch, bottom, left] + across * images[batch, bottom, right]
    return ((1 - down) * upper + down * lower).astype(np.float32)
