"""Pictures of an evaluation: real images beside samples, and samples beside the training images nearest to them."""

from __future__ import annotations

import numpy as np

from diffusion_jax.data.files import beside, tile
from diffusion_jax.evaluation.subject import Subject
from diffusion_jax.features.cache import gather
from diffusion_jax.metrics.neighbours import nearest_rows

_ROWS, _WIDEST = 8, 16  # of each half of the picture, in images
_SHOWN, _NEAREST = 8, 5  # samples, and training images beside each
_SHORTEST = 64  # pixels that an image is shown as, at least


def of(subject: Subject) -> dict[str, np.ndarray]:
    """The pictures for which everything is there, uint8 [H, W, C] by name."""
    found = {"samples": real_and_samples(subject)}
    if subject.reference is not None and subject.reference.images is not None:
        found["neighbours"] = neighbours(subject)
    return found


def real_and_samples(subject: Subject) -> np.ndarray:
    """Held-out real images on the left and samples on the right, of the same classes in the same places."""
    labels = subject.labels
    classes = 0 if labels is None else int(labels.max()) + 1
    columns = classes if 2 <= classes <= _WIDEST else 8  # a class a column, where they are few
    columns = min(columns, subject.num)
    count = min(_ROWS, subject.num // columns) * columns
    samples = subject.samples.head(count)
    scale = max(1, _SHORTEST // samples.shape[1])
    if subject.model is None:
        return tile(samples, columns, scale=scale)
    real = gather(subject.model.pipeline("test"))
    order = _matching(real.get("label"), None if labels is None else labels[:count], count, len(real["image"]))
    return beside([tile(images, columns, scale=scale) for images in (real["image"][order], samples)])


def neighbours(subject: Subject) -> np.ndarray:
    """Samples on the left, each followed by the training images nearest to it in features, nearest first."""
    rows = min(_SHOWN, subject.num)
    reference = subject.reference
    _, near = nearest_rows(subject.features["pool"][:rows], reference.features["pool"], _NEAREST)
    wanted, found, start = set(near.ravel().tolist()), {}, 0
    for batch in reference.images():
        found |= {index: batch[index - start] for index in wanted if start <= index < start + len(batch)}
        start += len(batch)
    samples = subject.samples.head(rows)
    scale = max(1, _SHORTEST // samples.shape[1])
    real = np.stack([found[index] for index in near.ravel().tolist()])
    return beside([tile(samples, 1, scale=scale), tile(real, _NEAREST, scale=scale)])


def _matching(have: np.ndarray | None, want: np.ndarray | None, count: int, total: int) -> np.ndarray:
    """Rows of real images, each of the wanted class and none twice while they last."""
    if have is None or want is None:
        return np.arange(count) % total
    places = {label: np.flatnonzero(have == label) for label in np.unique(want)}
    taken = dict.fromkeys(places, 0)
    rows = []
    for label in want:
        options = places[label] if len(places[label]) else np.arange(total)
        rows.append(options[taken[label] % len(options)])
        taken[label] += 1
    return np.asarray(rows)
