"""Trained runs as a cascade ready to be sampled: one workdir, or one for each stage."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import check_fields
from diffusion_jax.systems import Cascade, Sampling, Stage
from diffusion_jax.training import Run, load_run

_AUGMENTATION = ("aug_level", "truncated", "quantize")
"""Sampling fields that mean nothing to a stage that takes no low-resolution image."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A cascade with its parameters.

    Attributes:
      cascade: the stages and how each is sampled.
      runs: each stage's run, with its configuration, parameters and checkpoint step.
      workdirs: where they were loaded from.
    """

    cascade: Cascade
    runs: Sequence[Run]
    workdirs: Sequence[str]

    @property
    def params(self) -> list[Any]:
        """Of each stage."""
        return [run.params for run in self.runs]

    def pipeline(self, stage: int, split: str) -> data.Pipeline:
        """The data of a stage's run, in the given split ("train" or "test")."""
        config = self.runs[stage].config
        return data.from_config(config["data"], seed=config.get("seed", 0), split=split)

    def settings(self) -> dict[str, Any]:
        """What determines the samples of this cascade, as JSON data."""
        return {
            "stages": [
                {
                    "workdir": os.path.abspath(workdir),
                    "checkpoint": run.step,
                    "params_crc": fingerprint(run.params),
                    "sampling": stage.sampling.settings(),
                }
                for workdir, run, stage in zip(self.workdirs, self.runs, self.cascade.stages, strict=True)
            ]
        }


def load(
    workdirs: Sequence[str],
    *,
    steps: Sequence[int | None] | None = None,
    overrides: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Sequence[Any]] | None = None,
) -> Loaded:
    """Load a cascade from its runs.

    Args:
      workdirs: of each stage, in order of resolution.
      steps: the checkpoint of each stage; None is the last.
      overrides: of the runs' configurations, for all stages, such as {"sampling.solver": "heun"}.
      sampling: fields of `Sampling` that replace the runs' own: for each field one value for all stages, or one for
        each stage; None keeps the run's.

    Raises:
      ConfigError: stages that do not fit together, or settings that they cannot be sampled with.
      CheckpointError: no run, or no such checkpoint.
    """
    count = len(workdirs)
    given = {field: per_stage(field, values, count) for field, values in (sampling or {}).items()}
    check_fields("sampling", Sampling, given)
    steps = per_stage("step", steps or [None], count)
    weights = given.get("weights", [None] * count)
    runs, stages = [], []
    for number, workdir in enumerate(workdirs):
        chosen = {field: values[number] for field, values in given.items()}
        run = load_run(workdir, step=steps[number], overrides=overrides, weights=weights[number] or "ema")
        if not hasattr(run.system, "low_res_shape"):
            chosen = {field: value for field, value in chosen.items() if field not in _AUGMENTATION}
        runs.append(run)
        stages.append(Stage(run.system, Sampling.from_config(run.config.get("sampling"), **chosen)))
    return Loaded(Cascade(stages), runs, list(workdirs))


def per_stage(field: str, values: Sequence[Any], count: int) -> list[Any]:
    """One value for each stage from one for all or one each.

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
