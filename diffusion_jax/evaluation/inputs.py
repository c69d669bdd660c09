"""One set of samples and all that is known about it; what is costly is computed when it is first asked for, and once."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.evaluation import scores
from diffusion_jax.evaluation.reference import Reference, from_data, from_file
from diffusion_jax.features.classifier import TrainedClassifier, classifier_of_data
from diffusion_jax.features.extractor import BATCH, Extractor, features_of, small
from diffusion_jax.inference.sample_sets import SampleSet
from diffusion_jax.registry import build


@dataclasses.dataclass(frozen=True)
class Model:
    """What drew the samples.

    Attributes:
      system, params: of the stage that drew them.
      data: the run's `data` section.
      seed: of the run's data pipeline.
    """

    system: Any
    params: Any
    data: Mapping[str, Any]
    seed: int = 0

    def pipeline(self, split: str) -> data.Pipeline:
        """The run's images, "train" or "test"."""
        return data.from_config(self.data, seed=self.seed, split=None if split == "train" else split)


@dataclasses.dataclass(frozen=True)
class Options:
    """How metrics are computed.

    Args:
      seed: of held-out noise, subsets and resamples.
      bits_per_dim: held-out images whose likelihood is bounded; None is 16 where the process is a chain, else none.
      bits_per_dim_terms: also keep that bound's terms, a row for each step, in bits_per_dim_terms.csv.
      ode_steps: steps of the probability-flow ODE of `ode_bits_per_dim`.
      ode_divergence: "hutchinson", an estimate, or "exact", for few pixels.
      kid_subsets, kid_subset_size: of KID; the size is lowered to the number of samples.
      precision_recall: variant, "original" or "adm".
      classifier_steps: of trainings of small classifiers.
      level: of confidence intervals.
    """

    seed: int = 0
    bits_per_dim: int | None = None
    bits_per_dim_terms: bool = False
    ode_steps: int = 64
    ode_divergence: str = "hutchinson"
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    precision_recall: str = "original"
    classifier_steps: int = 1000
    level: float = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class MetricInputs:
    """Samples to be measured.

    Attributes:
      samples: the images; None before they are drawn.
      num: how many of them, from the first, are measured.
      options: how.
      labels: the classes that were asked for, int [num], or None.
      extractor: of all features, or None.
      reference: the real side, or None.
      classifier: a classifier of the data, or None.
      model: what drew the samples, or None where that is not known.
      low_res: what super-resolution was given, uint8 [M, h, w, C], repeating; or None.
      originals: the images that those were made from, uint8 [M, H, W, C]; or None.
    """

    samples: SampleSet | None
    num: int
    options: Options
    labels: np.ndarray | None = None
    extractor: Extractor | None = None
    reference: Reference | None = None
    classifier: Any = None
    model: Model | None = None
    low_res: np.ndarray | None = None
    originals: np.ndarray | None = None

    @property
    def kind(self) -> str:
        """What is measured: "images", or a "classifier" that draws none."""
        draws = self.model is None or getattr(self.model.system, "draws_images", True)
        return "images" if draws else "classifier"

    @functools.cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Of the samples, float32 [num, D] by output."""
        return features_of(self.extractor, self.samples.batches(BATCH, self.num))


WHENCE = {  # what an attribute is, and where it comes from
    "extractor": "a feature network (--features=NAME with --features_file, or a --workdir whose data have classes)",
    "reference": "real images (--workdir) or --reference=STATS.npz",
    "labels": "the classes that were asked for (labels.json, arr_1, or a class-conditional run)",
    "classifier": "a classifier (a --workdir whose data have classes)",
    "model": "the model that drew the samples (--workdir without --samples)",
    "low_res": "the low-resolution images that the samples were made from (a super-resolution run alone)",
    "originals": "the images that the low-resolution ones were made from (a super-resolution run alone)",
}


_LOG = logging.getLogger(__name__)

Parts = tuple[Extractor | None, Reference | None, TrainedClassifier | None]
"""What samples are held against: a feature network, the real side, a classifier of the data."""


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """How runs, or samples, are evaluated; beside `Options`:

    Args:
      num: samples of each point; of given samples, at most.
      batch_size: samples drawn at a time.
      metrics: names in `scores.METRICS`; empty for all that cost little and for which everything is there.
      features: "small", the classifier of the run's data, or the configuration of another network (registry "features").
      reference: a file of statistics; the run's training images by default.
      keep_samples: leave the drawn samples on disk.
    """

    num: int = 1000
    batch_size: int = 128
    metrics: tuple[str, ...] = ()
    features: Any = "small"
    reference: str | None = None
    keep_samples: bool = False

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ConfigError(f"num must be at least 2 for a covariance, got {self.num}")
        scores.check_names(self.metrics)

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


def parts_of(config: Mapping[str, Any], workdir: str, settings: Settings) -> Parts:
    """(extractor, reference, classifier) of a run's data; without classes there is no classifier, and no "small" network.

    Raises:
      DiffusionError: a network or a file of statistics that cannot be had.
    """
    classifier = None
    if data.from_config(config, split="test").num_classes:
        classifier = classifier_of_data(workdir, config, steps=settings.classifier_steps)
    if settings.features == "small":
        if classifier is None:
            _LOG.warning("The data have no classes: no classifier, no features. Name a network with --features and --weights.")
            return None, None, None
        extractor = small(classifier)
    else:
        extractor = build("features", settings.features)
    if settings.reference is not None:
        return extractor, from_file(settings.reference, extractor), classifier
    return extractor, from_data(config, extractor, Path(workdir) / "reference"), classifier


def parts_alone(settings: Settings) -> Parts:
    """What images without a run can be held against."""
    if settings.features == "small":
        raise ConfigError(
            "samples alone need a network, --features=NAME with --weights=FILE and --reference=STATS.npz, or a --workdir whose "
            "data they are compared with"
        )
    extractor = build("features", settings.features)
    return extractor, None if settings.reference is None else from_file(settings.reference, extractor), None
