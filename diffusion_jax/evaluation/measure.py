"""From a subject to the row of its results: metrics, pictures, and what they were made with."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from typing import Any

from diffusion_jax.data.files import write_image
from diffusion_jax.evaluation import pictures, scores
from diffusion_jax.evaluation.results import Results, Table
from diffusion_jax.evaluation.subject import Subject

_LOG = logging.getLogger(__name__)


def measure(subject: Subject, names: Sequence[str] = ()) -> dict[str, Any]:
    """The metrics of a subject.

    Args:
      names: in `scores.METRICS`; empty for all that cost little and for which everything is there.

    Raises:
      ConfigError: an unknown name, or a metric that lacks what it needs.
    """
    found: dict[str, Any] = {}
    for name in scores.choose(subject, names):
        began = time.monotonic()
        found |= scores.METRICS[name].compute(subject)
        of = subject.samples.name if subject.samples else "the classifier"
        _LOG.info("%s of %s: %.1f s", name, of, time.monotonic() - began)
    return found


def write_pictures(results: Results, key: str, subject: Subject) -> dict[str, str]:
    """Draw and write the pictures of a row; their files below the folder, by title."""
    if subject.samples is None:
        return {}
    made = pictures.of(subject)
    with results.writing():
        (results.folder / "pictures").mkdir(exist_ok=True)
        for name, picture in made.items():
            write_image(results.folder / "pictures" / f"{key}-{name}.png", picture)
        write_image(results.folder / "real_and_samples.png", made["samples"])
    return {name: f"pictures/{key}-{name}.png" for name in made}


def write_tables(results: Results, key: str, found: dict[str, Any]) -> dict[str, str]:
    """Take the tables out of the metrics, and write them; their files below the folder, by name.

    Those of the last point lie beside metrics.json as well.
    """
    tables = {name: value for name, value in found.items() if isinstance(value, Table)}
    with results.writing():
        for name, table in tables.items():
            del found[name]
            (results.folder / "tables").mkdir(exist_ok=True)
            for path in (results.folder / "tables" / f"{key}-{name}.csv", results.folder / f"{name}.csv"):
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, table[0])
                    writer.writeheader()
                    writer.writerows(table)
    return {name: f"tables/{key}-{name}.csv" for name in tables}


def sources(subject: Subject) -> dict[str, Any]:
    """What the numbers were computed with."""
    return {
        "extractor": subject.extractor.identity() if subject.extractor else None,
        "reference_data": subject.reference.name if subject.reference else None,
    }
