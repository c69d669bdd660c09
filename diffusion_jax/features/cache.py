"""Classifiers kept beside the runs that they judge, so that each is trained once."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.data.files import replacing
from diffusion_jax.errors import DataError
from diffusion_jax.features.classifier import Judge, train_classifier
from diffusion_jax.models import small_classifier

_LOG = logging.getLogger(__name__)

_RECIPE = 1  # raised when the classifier or its training changes: what was kept before is then trained anew
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_LIMIT = 20_000  # images in memory
_SEED = 0


def gather(pipeline: data.Pipeline, limit: int = _LIMIT) -> dict[str, np.ndarray]:
    """Images uint8 [N, H, W, C] (and labels) of a pipeline, in order, at most `limit`."""
    batches = list(pipeline.one_pass(256, limit=limit))
    names = [name for name in ("image", "label") if name in batches[0]]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def judge_of(workdir: str | Path, config: Mapping[str, Any], *, steps: int = 1000) -> Judge:
    """The classifier of a run's data: read from the run's directory, or trained on the training split and kept there.

    Args:
      config: the run's `data` section; its split "test" is held out.
      steps: of training.

    Raises:
      DataError: data without classes.
    """
    train, test = (data.from_config(config, seed=_SEED, split=split) for split in ("train", "test"))
    if not train.num_classes:
        raise DataError(f"the source {train.source.name!r} has no classes to train a classifier on")
    described = {"recipe": _RECIPE, "steps": steps, "data": {**config, "batch_size": None}}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:12]
    path = Path(workdir) / "classifier" / f"{digest}.npz"
    network = small_classifier(train.image_size, train.channels, train.num_classes)
    kept = _read(path, network)
    if kept is not None:
        return kept
    _LOG.info("Training a classifier on %d images of %s (once; kept in %s).", len(train), train.source.name, path)
    real, held_out = gather(train), gather(test)
    judge = train_classifier(
        real["image"], real["label"], train.num_classes,
        held_out=(held_out["image"], held_out["label"]), steps=steps, seed=_SEED,
    )  # fmt: skip
    _LOG.info("The classifier is right on %.1f %% of %d held-out images.", 100 * judge.accuracy, judge.num_held_out)
    _write(path, judge)
    return judge


def _write(path: Path, judge: Judge) -> None:
    leaves = {f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(judge.params))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, accuracy=judge.accuracy, num_held_out=judge.num_held_out, **leaves)
    except OSError as error:
        _LOG.warning("The classifier is not kept: cannot write %s (%s).", path, error.strerror)


def _read(path: Path, network: Any) -> Judge | None:
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
    return Judge(network, jax.tree.unflatten(structure, found), accuracy, count)
