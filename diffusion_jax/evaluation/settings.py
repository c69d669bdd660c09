"""How runs and samples are evaluated, and what they are held against."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.evaluation import scores
from diffusion_jax.evaluation.reference import Reference, from_data, from_file
from diffusion_jax.evaluation.subject import Options
from diffusion_jax.features.cache import judge_of
from diffusion_jax.features.classifier import Judge
from diffusion_jax.features.extractor import Extractor, small
from diffusion_jax.registry import build

_LOG = logging.getLogger(__name__)

Parts = tuple[Extractor | None, Reference | None, Judge | None]
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
    """(extractor, reference, judge) of a run's data; without classes there is no judge, and no "small" network.

    Raises:
      DiffusionError: a network or a file of statistics that cannot be had.
    """
    judge = None
    if data.from_config(config, split="test").num_classes:
        judge = judge_of(workdir, config, steps=settings.classifier_steps)
    if settings.features == "small":
        if judge is None:
            _LOG.warning("The data have no classes: no classifier, no features. Name a network with --features and --weights.")
            return None, None, None
        extractor = small(judge)
    else:
        extractor = build("features", settings.features)
    if settings.reference is not None:
        return extractor, from_file(settings.reference, extractor), judge
    return extractor, from_data(config, extractor, Path(workdir) / "reference"), judge


def parts_alone(settings: Settings) -> Parts:
    """What images without a run can be held against."""
    if settings.features == "small":
        raise ConfigError(
            "samples alone need a network, --features=NAME with --weights=FILE and --reference=STATS.npz, or a --workdir whose "
            "data they are compared with"
        )
    extractor = build("features", settings.features)
    return extractor, None if settings.reference is None else from_file(settings.reference, extractor), None
