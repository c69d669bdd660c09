"""Trained runs as a cascade ready to be sampled: one workdir, or one for each stage."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax import data, systems
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference.cascade import Cascade, Guided, Stage
from diffusion_jax.inference.run import load_run
from diffusion_jax.registry import check_fields
from diffusion_jax.systems import NoisyClassifier, Sampling, SuperResolution
from diffusion_jax.training.config import apply_overrides, read

_CLASSIFIER = ("classifier", "classifier_scale")
"""Sampling fields of a cascade's first stage alone."""

_AUGMENTATION = ("aug_level", "truncated", "quantize")
"""Sampling fields that mean nothing to a stage that takes no low-resolution image."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a cascade, known by their configurations; parameters are loaded by `weights`.

    Attributes:
      cascade: the stages and how each is sampled.
      workdirs, configs, checkpoints: of each stage; a checkpoint of None is the newest.
    """

    cascade: Cascade
    workdirs: Sequence[str]
    configs: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[int | None]

    def pipeline(self, stage: int, split: str) -> data.Pipeline:
        """The data of a stage's run, "train" or "test"."""
        config = self.configs[stage]
        return data.from_config(config["data"], seed=config["seed"], split=split)

    def load(self) -> tuple[list[Any], list[int]]:
        """The parameters of each stage (with a classifier, `Guided`), and the steps of their checkpoints.

        Raises:
          CheckpointError: no checkpoint, or not the one asked for.
        """
        params, steps = [], []
        for workdir, step, stage in zip(self.workdirs, self.checkpoints, self.cascade.stages, strict=True):
            run = load_run(workdir, step=step, weights=stage.sampling.weights)
            weights = run.params
            if stage.classifier is not None:
                chosen = read(stage.sampling.classifier)["sampling"].get("weights", "ema")  # its own, not the generator's
                weights = Guided(weights, load_run(stage.sampling.classifier, weights=chosen).params)
            params.append(weights)
            steps.append(run.step)
        return params, steps

    def settings(self, params: Sequence[Any], steps: Sequence[int]) -> list[dict[str, Any]]:
        """What determines each stage's part in the samples, as JSON data."""
        return [
            {
                "workdir": os.path.abspath(workdir),
                "checkpoint": step,
                "params_crc": fingerprint(weights),
                "sampling": stage.sampling.settings(),
            }
            for workdir, step, weights, stage in zip(self.workdirs, steps, params, self.cascade.stages, strict=True)
        ]


def find(
    workdirs: Sequence[str],
    *,
    checkpoints: Sequence[int | None] = (None,),
    overrides: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Sequence[Any]] | None = None,
) -> Runs:
    """The cascade of some runs, checked but without parameters.

    Args:
      workdirs: of each stage, in order of resolution.
      checkpoints: the step of each stage, or one for all; None is the newest.
      overrides: of the runs' configurations, for all stages, such as {"sampling.solver": "heun"}.
      sampling: fields of `Sampling` that replace the runs' own: for each field one value for all stages, or one for
        each stage.

    Raises:
      ConfigError: stages that do not fit together, or settings that they cannot be sampled with.
      CheckpointError: a workdir without a run.
    """
    count = len(workdirs)
    given = {field: per_stage(field, values, count) for field, values in (sampling or {}).items()}
    check_fields("sampling", Sampling, given)
    configs, stages = [], []
    for number, workdir in enumerate(workdirs):
        config = apply_overrides(read(workdir), overrides)
        system = systems.from_config(config)
        chosen = {field: values[number] for field, values in given.items()}
        if not isinstance(system, SuperResolution):
            chosen = {field: value for field, value in chosen.items() if field not in _AUGMENTATION}
        if number:
            chosen = {field: value for field, value in chosen.items() if field not in _CLASSIFIER}
        sampling = Sampling.from_config(config["sampling"], **chosen)
        if "classifier_scale" in chosen and sampling.classifier is None:
            raise ConfigError("classifier_scale says how strongly a classifier guides: name one with --classifier=WORKDIR")
        configs.append(config)
        stages.append(Stage(system, sampling, classifier_of(sampling)))
    return Runs(Cascade(stages), list(workdirs), configs, per_stage("step", checkpoints, count))


def classifier_of(sampling: Sampling) -> NoisyClassifier | None:
    """The noisy classifier that a stage is to follow.

    Raises:
      ConfigError: the directory holds a run of another system.
      CheckpointError: it holds no run.
    """
    if sampling.classifier is None:
        return None
    system = systems.from_config(read(sampling.classifier))
    if not isinstance(system, NoisyClassifier):
        raise ConfigError(
            f"the classifier {sampling.classifier} is a run of the system {system.name!r}, not of 'noisy_classifier': "
            "train one with a recipe such as configs/adm.py:classifier64"
        )
    return system


def per_stage(field: str, values: Sequence[Any], count: int) -> list[Any]:
    """One value for each stage, from one for all or one each.

    >>> per_stage("guidance", [2.0], 2)
    [2.0, 2.0]
    """
    if len(values) not in (1, count):
        raise ConfigError(f"{field}: {len(values)} values for {count} stage{'s' * (count > 1)}; give one, or one each")
    return list(values) * (count if len(values) == 1 else 1)


def fingerprint(params: Any) -> int:
    """A checksum of parameters, by which samples of other weights are told apart."""
    total = 0
    for leaf in jax.tree.leaves(params):
        total = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8), total)
    return total
