"""Evaluates images that are there already, whatever made them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any

from diffusion_jax.data.files import write_json
from diffusion_jax.evaluation.measure import measure, sources, write_pictures
from diffusion_jax.evaluation.results import Results
from diffusion_jax.evaluation.settings import Settings, parts_alone, parts_of
from diffusion_jax.evaluation.subject import Subject
from diffusion_jax.inference.sample_sets import open_samples
from diffusion_jax.training import config as configs
from diffusion_jax.training.checkpoints import versions


def evaluate_samples(
    path: str | os.PathLike, out: str | os.PathLike, settings: Settings | None = None, workdir: str | None = None
) -> dict[str, Any]:
    """Evaluate images that some tool made, and write what was found.

    Args:
      path: a folder of images or an npz; see `open_samples`.
      out: where results and pictures go.
      settings: how; `num` is the most images that are taken.
      workdir: a run whose data stand for the real side, unless `settings` name a reference.

    Raises:
      DiffusionError: images, a network or statistics that cannot be had.
    """
    settings, samples = settings or Settings(), open_samples(path)
    num = min(settings.num, samples.count)
    config = None if workdir is None else configs.read(workdir)["data"]
    parts = parts_alone(settings) if config is None else parts_of(config, str(workdir), settings)
    subject = Subject(samples, num, settings, None if samples.labels is None else samples.labels[:num], *parts)
    results = Results(out)
    began = time.monotonic()
    settled = {**settings.plain(), "samples": os.path.abspath(path), **sources(subject)}
    key = hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()[:16]
    found = measure(subject, settings.metrics)
    row = {
        "key": key, "step": None, "checkpoints": [], "sampling": {"samples": [str(path)]}, "num": num, "metrics": found,
        "pictures": write_pictures(results, key, subject), "settings": settled, "versions": versions(),
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    results.add(row)
    with results.writing():
        write_json(results.folder / "metrics.json", {**found, "num_samples": num, "settings": settled})
    return {**found, "num_samples": num, "settings": settled}
