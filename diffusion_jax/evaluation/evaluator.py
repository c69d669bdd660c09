"""One number for each question about a trained run or cascade, and a picture of real images beside samples."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.files import beside, tile, write_image, write_json
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.evaluation.cache import gather, judge_of
from diffusion_jax.evaluation.classifier import Judge
from diffusion_jax.evaluation.frechet import Moments, frechet_distance
from diffusion_jax.evaluation.generate import Generator
from diffusion_jax.evaluation.held_out import bits_per_dim, held_out_loss
from diffusion_jax.evaluation.requests import Rows, low_res_of
from diffusion_jax.evaluation.runs import Runs, find
from diffusion_jax.systems import Cascade, SuperResolution

_LOG = logging.getLogger(__name__)

_ROWS, _WIDEST = 8, 16  # of each half of the picture, in images
_CHAIN_IMAGES = 16  # whose bits per dimension are computed where the process is a chain


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is evaluated.

    Args:
      num: samples.
      seed: of the samples and of the held-out noise.
      batch_size: samples at a time.
      bits_per_dim: held-out images whose variational bound is computed, T network evaluations each; None is 16 where
        the process is a discrete chain, and none in continuous time.
      classifier_steps: of the training of the small classifier.
    """

    num: int = 1000
    seed: int = 0
    batch_size: int = 128
    bits_per_dim: int | None = None
    classifier_steps: int = 1000

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ConfigError(f"num must be at least 2 for a covariance, got {self.num}")


def evaluate_run(
    workdirs: Sequence[str | os.PathLike] | str | os.PathLike,
    out: str | os.PathLike | None = None,
    settings: Settings | None = None,
    *,
    checkpoints: Sequence[int | None] = (None,),
    overrides: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate a run, or a cascade of runs, and write what was found.

    Args:
      workdirs: one, or those of each stage in order of resolution.
      out: where metrics.json and real_and_samples.png go; `evaluation` in the last workdir by default.
      checkpoints, overrides, sampling: as `runs.find` takes them.

    Returns:
      The metrics, as written; `measure` explains them.

    Raises:
      DiffusionError: what cannot be loaded, sampled or written.
    """
    workdirs = [os.fspath(w) for w in ([workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs)]
    settings = settings or Settings()
    runs = find(workdirs, checkpoints=checkpoints, overrides=overrides, sampling=sampling)
    metrics, picture = measure(runs, settings)
    folder = Path(out if out is not None else Path(workdirs[-1]) / "evaluation")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", metrics)
        write_image(folder / "real_and_samples.png", picture)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    return metrics


def measure(runs: Runs, settings: Settings) -> tuple[dict[str, Any], np.ndarray]:
    """The metrics of a cascade, and real images beside samples.

    Of the last stage: classifier_accuracy (of the judge, on held-out real images), agreement (the share of samples in
    which the judge sees the asked-for class), frechet_distance (samples against the training images, in the judge's
    features) and frechet_reference (held-out images against the training images: the floor). Of a cascade's stages,
    the name of the stage goes before: base_agreement, cascade_agreement, ... Of every stage: held_out_loss, and
    bits_per_dim where asked for. Metrics that the data have no classes for are left out.
    """
    rows = _requests(runs, settings.num)
    rows.check(runs.cascade, settings.num)
    params, steps = runs.load()
    labels = rows.labels(settings.num)
    samples = _samples(runs, params, rows, settings)
    metrics: dict[str, Any] = {}
    for number in range(len(params)):
        metrics |= _of_stage(runs, number, params[number], samples[number], labels, settings)
    metrics |= {
        "num_samples": settings.num,
        "settings": {**dataclasses.asdict(settings), "stages": runs.settings(params, steps)},
    }
    return metrics, _picture(runs, samples[-1], labels)


def _requests(runs: Runs, num: int) -> Rows:
    """Classes in turn; for super-resolution, held-out images with their own classes."""
    first, classes = runs.cascade.stages[0].system, runs.cascade.num_classes
    columns = low_res_of(first, runs.pipeline(0, "test"), num) if isinstance(first, SuperResolution) else {}
    in_turn = (lambda indices: (indices % classes).astype(np.int32)) if classes and "label" not in columns else None
    return Rows(columns, in_turn)


def _samples(runs: Runs, params: Sequence[Any], rows: Rows, settings: Settings) -> list[np.ndarray]:
    """The finished images of every stage, uint8.

    A stage before a truncated one never finishes in the cascade: it is drawn once more by itself.
    """
    stages = runs.cascade.stages
    found: list[np.ndarray] = []
    for last in range(len(stages)):
        if last + 1 < len(stages) and not stages[last + 1].sampling.truncated:
            continue  # the pass over a later stage brings this one along
        generator = Generator(
            Cascade(stages[: last + 1]), params[: last + 1],
            seed=settings.seed, batch_size=min(settings.batch_size, settings.num), every_stage=True,
        )  # fmt: skip
        drawn = [part.images for part in generator(range(settings.num), rows)]
        found += [np.concatenate([part[stage] for part in drawn]) for stage in range(len(found), last + 1)]
    return found


def _name(number: int, count: int) -> str:
    """What goes before the metrics of a stage."""
    return {0: "base_", count - 1: "cascade_"}.get(number, f"stage{number + 1}_") if count > 1 else ""


def _of_stage(
    runs: Runs, number: int, params: Any, samples: np.ndarray, labels: np.ndarray | None, settings: Settings
) -> dict[str, Any]:
    """The metrics of one stage."""
    count, system = len(runs.workdirs), runs.cascade.stages[number].system
    test = runs.pipeline(number, "test")
    metrics: dict[str, Any] = {"held_out_loss": held_out_loss(system, params, test, seed=settings.seed)}
    images = settings.bits_per_dim
    if images is None:
        images = _CHAIN_IMAGES if system.process.num_steps else 0
    if images:
        bound = bits_per_dim(system, params, test, limit=images, seed=settings.seed)
        metrics |= {"bits_per_dim": bound.pop("bits_per_dim"), "bits_per_dim_parts": bound}
    if test.num_classes:
        judge = judge_of(runs.workdirs[number], runs.configs[number]["data"], steps=settings.classifier_steps)
        metrics |= _judged(judge, runs, number, samples, labels)
    else:
        _LOG.warning("%s has no classes: no classifier, no agreement and no Frechet distance.", test.source.name)
    prefix = _name(number, count)
    # The last stage's numbers are the cascade's own; only its agreement has a name that says so.
    last = number == count - 1
    return {(name if last and name != "agreement" else prefix + name): value for name, value in metrics.items()}


def _judged(judge: Judge, runs: Runs, number: int, samples: np.ndarray, labels: np.ndarray | None) -> dict[str, float | None]:
    """What a classifier makes of a stage's samples."""
    seen, features = judge.look(samples)
    real, held_out = (gather(runs.pipeline(number, split))["image"] for split in ("train", "test"))
    reference = Moments().add(judge.look(real)[1])
    metrics: dict[str, float | None] = {
        "classifier_accuracy": judge.accuracy,
        "frechet_distance": frechet_distance(Moments().add(features), reference),
        "frechet_reference": frechet_distance(Moments().add(judge.look(held_out)[1]), reference),
    }
    return metrics if labels is None else {**metrics, "agreement": float((seen == labels).mean())}


def _picture(runs: Runs, samples: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Held-out real images on the left and samples on the right, of the same classes in the same places."""
    classes = 0 if labels is None else runs.cascade.num_classes
    columns = classes if 2 <= classes <= _WIDEST else 8  # a class a column, where they are few
    columns = min(columns, len(samples))
    count = min(_ROWS, len(samples) // columns) * columns
    real = gather(runs.pipeline(len(runs.workdirs) - 1, "test"))
    order = _matching(real.get("label"), None if labels is None else labels[:count], count, len(real["image"]))
    scale = max(1, 64 // samples.shape[1])
    return beside([tile(images, columns, scale=scale) for images in (real["image"][order], samples[:count])])


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
