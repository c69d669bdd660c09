"""From samples and what is known of them to the row of their results: metrics, pictures, tables."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_jax.data.files import beside, tile, write_image
from diffusion_jax.evaluation import scores
from diffusion_jax.evaluation.inputs import MetricInputs
from diffusion_jax.evaluation.results import Results, Table
from diffusion_jax.features.classifier import gather
from diffusion_jax.files import replacing
from diffusion_jax.metrics.manifolds import nearest_rows

_LOG = logging.getLogger(__name__)


def measure(inputs: MetricInputs, names: Sequence[str] = ()) -> dict[str, Any]:
    """Compute metrics.

    Args:
      names: in `scores.METRICS`; empty for all that cost little and for which everything is there.

    Raises:
      ConfigError: an unknown name, or a metric that lacks what it needs.
    """
    found: dict[str, Any] = {}
    for name in scores.choose(inputs, names):
        began = time.monotonic()
        found |= scores.METRICS[name].compute(inputs)
        _LOG.info("%s of %s: %.1f s", name, inputs.name, time.monotonic() - began)
    return found


def write_pictures(results: Results, key: str, inputs: MetricInputs) -> dict[str, str]:
    """Draw and write the pictures of a row; their files below the folder, by title."""
    if inputs.source is None:
        return {}
    made = pictures_of(inputs)
    with results.writing() as writes:
        for name, picture in made.items() if writes else ():
            (results.folder / "pictures").mkdir(exist_ok=True)
            write_image(results.folder / "pictures" / f"{key}-{name}.png", picture)
    return {name: f"pictures/{key}-{name}.png" for name in made}


def write_tables(results: Results, key: str, found: dict[str, Any]) -> dict[str, str]:
    """Take the tables out of the metrics, and write them; their files below the folder, by name."""
    tables = {name: found.pop(name) for name, value in list(found.items()) if isinstance(value, Table)}
    with results.writing() as writes:
        for name, table in tables.items() if writes else ():
            (results.folder / "tables").mkdir(exist_ok=True)
            with (
                replacing(results.folder / "tables" / f"{key}-{name}.csv") as temporary,
                temporary.open("w", newline="") as file,
            ):
                writer = csv.DictWriter(file, table[0])
                writer.writeheader()
                writer.writerows(table)
    return {name: f"tables/{key}-{name}.csv" for name in tables}


def sources(inputs: MetricInputs) -> dict[str, Any]:
    """Return what the numbers were computed with."""
    return {
        "extractor": inputs.extractor.identity() if inputs.extractor else None,
        "reference_data": inputs.reference.name if inputs.reference else None,
    }


_ROWS, _WIDEST = 8, 16  # of each half of the picture, in images
_SHOWN, _NEAREST = 8, 5  # samples, and training images beside each
_SHORTEST = 64  # pixels that an image is shown as, at least


def pictures_of(inputs: MetricInputs) -> dict[str, np.ndarray]:
    """Draw the pictures for which everything is there, uint8 [H, W, C] by name."""
    found = {"samples": real_and_samples(inputs)}
    if inputs.reference is not None and inputs.reference.images is not None:
        found["neighbours"] = neighbours(inputs)
    return found


def real_and_samples(inputs: MetricInputs) -> np.ndarray:
    """Held-out real images on the left and samples on the right, of the same classes in the same places."""
    labels = inputs.labels
    classes = 0 if labels is None else int(labels.max()) + 1
    columns = classes if 2 <= classes <= _WIDEST else 8  # a class a column, where they are few
    columns = min(columns, inputs.num)
    count = min(_ROWS, inputs.num // columns) * columns
    samples = inputs.samples.head(count)
    scale = max(1, _SHORTEST // samples.shape[1])
    if inputs.model is None:
        return tile(samples, columns, scale=scale)
    real = gather(inputs.model.pipeline("test"))
    order = _matching(real.get("label"), None if labels is None else labels[:count], count, len(real["image"]))
    return beside([tile(images, columns, scale=scale) for images in (real["image"][order], samples)])


def neighbours(inputs: MetricInputs) -> np.ndarray:
    """Samples on the left, each followed by the training images nearest to it in features, nearest first."""
    rows = min(_SHOWN, inputs.num)
    reference = inputs.reference
    _, near = nearest_rows(inputs.features["pool"][:rows], reference.features["pool"], _NEAREST)
    wanted, found, start = set(near.ravel().tolist()), {}, 0
    for batch in reference.images():
        found |= {index: batch[index - start] for index in wanted if start <= index < start + len(batch)}
        start += len(batch)
    samples = inputs.samples.head(rows)
    scale = max(1, _SHORTEST // samples.shape[1])
    real = np.stack([found[index] for index in near.ravel().tolist()])
    return beside([tile(samples, 1, scale=scale), tile(real, _NEAREST, scale=scale)])


def _matching(have: np.ndarray | None, want: np.ndarray | None, count: int, total: int) -> np.ndarray:
    """Requests of real images, each of the wanted class and none twice while they last."""
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
