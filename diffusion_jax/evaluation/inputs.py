"""What metrics are computed from: settings, and one set of samples with all that is known about it, each computed once."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.evaluation.reference import Reference, from_data, from_file
from diffusion_jax.features.classifier import TrainedClassifier, classifier_of_data
from diffusion_jax.features.extractor import BATCH, Extractor, features_of
from diffusion_jax.features.networks import small
from diffusion_jax.files import user_path
from diffusion_jax.inference.run import Run
from diffusion_jax.inference.sample_sets import SampleSet
from diffusion_jax.registry import build
from diffusion_jax.values import Count, Natural, Range, Seed, check_options

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How runs, or samples, are evaluated.

    Args:
      num: samples of each case; of given samples, at most.
      batch_size: samples drawn at a time.
      metrics: names in `scores.METRICS`; empty for all that cost little and for which everything is there.
      features: "small", the classifier of the run's data, or the configuration of another network (registry "features").
      reference: a file of statistics; the run's training images by default.
      keep_samples: leave the drawn samples on disk.
      seed: of all noise, of subsets and resamples.
      bits_per_dim: held-out images whose likelihood is bounded; None is 16 where the process is a chain, else none.
      bits_per_dim_terms: also keep that bound's terms, a row for each step, in bits_per_dim_terms.csv.
      ode_steps: steps of the probability-flow ODE of `ode_bits_per_dim`.
      ode_divergence: "hutchinson", an estimate, or "exact", for few pixels.
      kid_subsets, kid_subset_size: of KID; the size is lowered to the number of samples.
      precision_recall: variant, "original" or "adm".
      classifier_steps: of trainings of small classifiers.
      level: of confidence intervals.

    Raises:
      ConfigError: a value of another kind or out of its range; fewer than 2 samples have no covariance.
    """

    num: Annotated[int, Range(2)] = 1000
    batch_size: Count = 128
    metrics: tuple[str, ...] = ()
    features: Any = "small"
    reference: str | None = None
    keep_samples: bool = False
    seed: Seed = 0
    bits_per_dim: Natural | None = None
    bits_per_dim_terms: bool = False
    ode_steps: Count = 64
    ode_divergence: Literal["hutchinson", "exact"] = "hutchinson"
    kid_subsets: Count = 100
    kid_subset_size: Count = 1000
    precision_recall: Literal["original", "adm"] = "original"
    classifier_steps: Count = 1000
    level: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.95

    def __post_init__(self) -> None:
        check_options(self)

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON data."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What samples are held against.

    Attributes:
      extractor: of all features, or None.
      reference: the real side, or None.
      classifier: of the data, or None where they have no classes.
    """

    extractor: Extractor | None = None
    reference: Reference | None = None
    classifier: TrainedClassifier | None = None


def parts_of(run: Run, settings: Settings) -> Parts:
    """Return what samples of a run are held against; without classes there is no classifier, and no "small" network.

    Raises:
      DiffusionError: a network or a file of statistics that cannot be had.
    """
    extractor = None if settings.features == "small" else build("features", settings.features)
    classifier = None
    if run.pipeline("test").num_classes:
        classifier = classifier_of_data(run.workdir, run.data, steps=settings.classifier_steps)
    if extractor is None:
        if classifier is None:
            _LOG.warning(
                "The data have no classes: no classifier, no features. Name a network: --features=NAME --features_file=FILE."
            )
            return Parts()
        extractor = small(classifier)
    if settings.reference is not None:
        file = str(user_path(settings.reference))
        return Parts(extractor, from_file(file, extractor, run.pipeline("test")), classifier)
    return Parts(extractor, from_data(run.data, extractor, Path(run.workdir) / "reference"), classifier)


def parts_alone(settings: Settings) -> Parts:
    """Return what images without a run can be held against."""
    if settings.features == "small":
        raise ConfigError(
            "samples alone need a network, --features=NAME with --features_file=FILE and --reference=STATS.npz, or a --workdir "
            "whose data they are compared with"
        )
    extractor = build("features", settings.features)
    return Parts(extractor, None if settings.reference is None else from_file(str(user_path(settings.reference)), extractor))


@dataclasses.dataclass(frozen=True)
class Model:
    """What drew the samples.

    Attributes:
      run: of the stage that drew them.
      params: its parameters by group.
    """

    run: Run
    params: Any

    @property
    def system(self) -> Any:
        """The run's system."""
        return self.run.system

    def pipeline(self, split: str) -> data.Pipeline:
        """Return the run's images, "train" or "test"."""
        return self.run.pipeline(split)


@dataclasses.dataclass(frozen=True, eq=False)
class MetricInputs:
    """Samples to be measured, and all that is known about them.

    Attributes:
      source: the images, or what waits for them while they are drawn; None where the model draws none.
      num: how many of them, from the first, are measured.
      settings: how.
      parts: what they are held against.
      labels: the classes that were asked for, int [num], or None.
      model: what drew the samples, or None where that is not known.
      low_res: what super-resolution was given, uint8 [M, h, w, C], repeating; or None.
      name: of the samples, for the log.
    """

    source: SampleSet | Callable[[], SampleSet] | None
    num: int
    settings: Settings
    parts: Parts
    labels: np.ndarray | None = None
    model: Model | None = None
    low_res: np.ndarray | None = None
    name: str = "the samples"

    @functools.cached_property
    def samples(self) -> SampleSet | None:
        """The images, once they are drawn."""
        return self.source() if callable(self.source) else self.source

    @property
    def extractor(self) -> Extractor | None:
        """Of all features."""
        return self.parts.extractor

    @property
    def reference(self) -> Reference | None:
        """The real side."""
        return self.parts.reference

    @property
    def classifier(self) -> TrainedClassifier | None:
        """Of the data."""
        return self.parts.classifier

    @functools.cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Of the samples, float32 [num, D] by output."""
        return features_of(self.extractor, self.samples.batches(BATCH, self.num))

    @functools.cached_property
    def originals(self) -> np.ndarray | None:
        """The images that the low-resolution ones were made from, uint8 [M, H, W, C]; or None."""
        if self.low_res is None or self.model is None:
            return None
        return np.concatenate([batch["image"] for batch in self.model.pipeline("test").one_pass(256, limit=self.num)])


WHENCE = {  # what an attribute is, and where it comes from
    "extractor": "a feature network (--features=NAME with --features_file, or a --workdir whose data have classes)",
    "reference": "real images (--workdir) or --reference=STATS.npz",
    "labels": "the classes that were asked for (labels.json, arr_1, or a class-conditional run)",
    "classifier": "a classifier (a --workdir whose data have classes)",
    "model": "the model that drew the samples (--workdir without --samples)",
    "low_res": "the low-resolution images that the samples were made from (a super-resolution run alone)",
    "originals": "the images that the low-resolution ones were made from (a super-resolution run alone)",
}
