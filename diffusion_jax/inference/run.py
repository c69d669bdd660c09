"""Trained runs: whatever one consists of is read or built when it is first asked for, once, and shared."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax import data, files, identity, systems
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.inference import requests
from diffusion_jax.inference.cascade import Cascade, Stage, StageParams, previous_of
from diffusion_jax.inference.generator import Generator
from diffusion_jax.registry import check_fields
from diffusion_jax.systems import Classifies, Samples, Sampling, ability
from diffusion_jax.training import config as configs
from diffusion_jax.training import data_record, finished_steps, frozen
from diffusion_jax.training import ema as emas
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.checkpoints import restore_weights

_LOG = logging.getLogger(__name__)

# Sampling fields of a cascade's first stage alone, and those that mean nothing to a stage that takes no earlier one's output.
_CLASSIFIER, _AUGMENTATION = ("classifier", "classifier_scale"), ("aug_level", "truncated", "quantize")


class Run:
    """A trained run in a directory.

    Args:
      workdir: of the run.
      overrides: dotted fields of the configuration to replace, such as {"sampling.steps": 10}.
      mesh: sizes of "data", "fsdp" and "tensor"; the run's own where they fit the devices that are here, else all for "data".
      config: the recipe that the run was trained with, where parts of it are Python objects, which config.json cannot hold.

    Raises:
      CheckpointError: there is no run, or it cannot be read.
      ConfigError: overrides of what does not exist, or another run's recipe.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        overrides: Mapping[str, Any] | None = None,
        mesh: Mapping[str, int] | None = None,
        *,
        config: Any = None,
    ) -> None:
        self.workdir = os.fspath(files.user_path(workdir))
        found = configs.read(self.workdir)
        if config is not None:
            config = configs.complete(config)
            changed = configs.difference(found, configs.recorded(config))
            if changed:
                raise ConfigError(f"{self.workdir} was trained with another recipe. There -> here: {'; '.join(changed)}")
        self.config = configs.apply_overrides(found if config is None else config, overrides)
        self._other_data = any(path == "data" or path.startswith("data.source") for path in overrides or {})
        self._mesh = mesh
        self._pipelines: dict[str, data.Pipeline] = {}
        self._others: dict[str, Run] = {}
        self._loaded: tuple[Any, tuple[Any, int]] | None = None

    @classmethod
    def open(
        cls,
        workdir: str | os.PathLike,
        overrides: Mapping[str, Any] | None = None,
        mesh: Mapping[str, int] | None = None,
        *,
        config: Any = None,
    ) -> Run:
        """Open a run; see `Run`."""
        return cls(workdir, overrides, mesh, config=config)

    @functools.cached_property
    def system(self) -> Any:
        """What was trained."""
        return systems.from_config(self.config)

    @functools.cached_property
    def data(self) -> data.Data:
        """The splits of the run's data, each opened once, and held against what they were in training."""
        recorded = None if self._other_data else data_record.read(self.workdir)
        return data.Data(self.config["data"], seed=self.config["seed"], recorded=recorded)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of all processes."""
        if self._mesh is not None:
            return meshes.make_mesh({**dict.fromkeys(meshes.AXES, 1), **self._mesh})
        try:
            return meshes.make_mesh(self.config["mesh"])
        except ConfigError:
            _LOG.info("The run's own mesh does not fit the %d devices here: each holds all parameters.", len(jax.devices()))
            return meshes.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})

    def pipeline(self, split: str = "train") -> data.Pipeline:
        """Return the pipeline of a split, "train" or "test"."""
        if split not in self._pipelines:
            self._pipelines[split] = self.data.pipeline(split)
        return self._pipelines[split]

    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, oldest first."""
        return finished_steps(self.workdir)

    def params(self, step: int | None = None, weights: str = "ema", mesh: jax.sharding.Mesh | None = None) -> Any:
        """Return the parameters of a checkpoint, {group: tree}; see `load`."""
        return self.load(step, weights, mesh)[0]

    def load(self, step: int | None = None, weights: str = "ema", mesh: jax.sharding.Mesh | None = None) -> tuple[Any, int]:
        """Read the parameters of a checkpoint straight onto a mesh, and nothing else of it; the last ones read are kept.

        Args:
          step: of the checkpoint; the newest readable one by default.
          weights: "ema" (the first average), "raw", or the label of an average.
          mesh: the run's own by default. Parameters lie on it as in training: none is ever whole on one device under fsdp.

        Returns:
          ({group: tree of arrays}, the step of the checkpoint).

        Raises:
          CheckpointError: no such checkpoint, no such average, or none that can be read.
        """
        mesh = mesh or self.mesh
        found = (step, tuple(self.steps()), weights, mesh)
        if self._loaded is None or self._loaded[0] != found:
            labels = [average.label for average in emas.from_config(self.config["training"]["ema"])]
            chosen = labels[0] if weights == "ema" else weights
            if chosen not in ("raw", *labels):
                raise CheckpointError(f"{self.workdir} has no weights {weights!r} (it has: ema, raw, {', '.join(labels)})")
            self._loaded = found, restore_weights(self.workdir, self._target(mesh), chosen, step)
        return self._loaded[1]

    def _target(self, mesh: jax.sharding.Mesh) -> Any:
        """The abstract parameters with their shardings on a mesh."""
        abstract = {"params": jax.eval_shape(self.system.init, jax.random.key(0))}
        shardings = meshes.state_shardings(mesh, abstract, self.config["mesh"]["rules"])
        return _placed(abstract, shardings)["params"]

    def frozen(self, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
        """Read what the codec needs of the section `frozen` onto a mesh: {name: {group: tree}}; {} for most.

        Raises:
          ConfigError: the run does not name it; CheckpointError: it cannot be read, or is not what the run was trained with.
        """
        names = self.system.codec.needs if isinstance(self.system, Samples) else ()
        lacking = [name for name in names if name not in self.config["frozen"]]
        if lacking:
            raise ConfigError(f"{self.workdir}: the codec needs frozen.{lacking[0]}, a trained run or a file")
        section = {name: self.config["frozen"][name] for name in names}
        abstract = frozen.shapes(section)
        shardings = meshes.state_shardings(mesh or self.mesh, abstract)
        return frozen.load(section, _placed(abstract, shardings), self.workdir) if names else {}

    def identity(self, step: int | None = None, weights: str = "ema") -> dict[str, Any]:
        """Return what tells this run's parameters from all others, as JSON data."""
        params, found = self.load(step, weights)
        return {"workdir": os.path.abspath(self.workdir), "checkpoint": found, "params": identity.checksum(params)}

    def sample(
        self, num: int | None = None, *, labels: Sequence[int] | None = None, step: int | None = None, seed: int = 0,
        batch_size: int = 64, **sampling: Any,
    ) -> np.ndarray:  # fmt: skip
        """Draw samples, as the program `sample` does.

        Args:
          num: how many; as many as there are labels by default, or `batch_size`.
          labels: classes, in turn; the run's default by default, held-out conditions where it needs data.
          step: of the checkpoint.
          sampling: fields of `Sampling` in place of the run's own, such as guidance=2.0.

        Returns:
          As the data have them: uint8 [num, H, W, C] of images.

        Raises:
          DiffusionError: what this run cannot be asked for.
        """
        runs = Runs.of([self], (step,), {field: [value] for field, value in sampling.items()})
        given = {} if labels is None else {"labels": ",".join(map(str, labels))}
        num = num or (batch_size if labels is None else len(labels))
        asked, _ = requests.ask(runs.cascade.conditioners, self.data, num, given)
        asked.check(runs.cascade, num)
        generator = Generator(runs.cascade, runs.load()[0], seed=seed, batch_size=min(batch_size, num))
        return np.concatenate([drawn.images[-1] for drawn in generator(range(num), asked)])

    def other(self, workdir: str) -> Run:
        """Return another run that this one is sampled with, such as a classifier's; each is opened once."""
        if workdir not in self._others:
            self._others[workdir] = Run(workdir, mesh=self._mesh)
        return self._others[workdir]


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """Runs as a cascade that can be sampled; one run alone is a cascade too.

    Attributes:
      runs: of each stage.
      cascade: the stages, and how each is sampled.
      checkpoints: the step of each stage; None is the newest.
    """

    runs: Sequence[Run]
    cascade: Cascade
    checkpoints: Sequence[int | None]

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        checkpoints: Sequence[int | None] = (None,),
        sampling: Mapping[str, Sequence[Any]] | None = None,
    ) -> Runs:
        """Join opened runs; see `find`, which has the arguments."""
        count = len(runs)
        given = {field: per_stage(field, values, count) for field, values in (sampling or {}).items()}
        chosen = [{field: values[number] for field, values in given.items()} for number in range(count)]
        for each in chosen:
            check_fields("sampling", Sampling, each)
        stages = [_stage(run, chosen[number], number) for number, run in enumerate(runs)]
        return cls(list(runs), Cascade(stages), per_stage("step", checkpoints, count))

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """Where all stages' parameters lie: the mesh of the last run, the largest."""
        return self.runs[-1].mesh

    def load(self) -> tuple[list[StageParams], list[int]]:
        """Return the parameters of each stage, and the steps of their checkpoints.

        Raises:
          CheckpointError: no checkpoint, or not the one asked for.
        """
        params, steps = [], []
        for run, step, stage in zip(self.runs, self.checkpoints, self.cascade.stages, strict=True):
            own, found = run.load(step, stage.sampling.weights, self.mesh)
            classifier = None
            if stage.sampling.classifier is not None:
                beside = run.other(stage.sampling.classifier)
                classifier = beside.params(None, beside.config["sampling"].get("weights", "ema"), self.mesh)  # its own weights
            params.append(StageParams(own, classifier, run.frozen(self.mesh)))
            steps.append(found)
        return params, steps

    def settings(self, params: Sequence[StageParams], steps: Sequence[int]) -> list[dict[str, Any]]:
        """Return what determines each stage's part in the samples, as JSON data."""
        return [
            {
                "workdir": os.path.abspath(run.workdir),
                "checkpoint": step,
                "params": identity.checksum((weights.own, weights.classifier)),
                "sampling": stage.sampling.settings(),
            }
            for run, step, weights, stage in zip(self.runs, steps, params, self.cascade.stages, strict=True)
        ]


def find(
    workdirs: Sequence[str | os.PathLike],
    *,
    checkpoints: Sequence[int | None] = (None,),
    overrides: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Sequence[Any]] | None = None,
    mesh: Mapping[str, int] | None = None,
) -> Runs:
    """Open runs as a cascade, checked but without parameters.

    Args:
      workdirs: of each stage, in order of resolution.
      checkpoints: the step of each stage, or one for all; None is the newest.
      overrides: of the runs' configurations, for all stages, such as {"sampling.solver": "heun"}.
      sampling: fields of `Sampling` that replace the runs' own: for each field one value for all stages, or one for
        each stage.
      mesh: see `Run`.

    Raises:
      ConfigError: stages that do not fit together, or settings that they cannot be sampled with.
      CheckpointError: a workdir without a run.
    """
    return Runs.of([Run(workdir, overrides, mesh) for workdir in workdirs], checkpoints, sampling)


def _stage(run: Run, chosen: Mapping[str, Any], number: int) -> Stage:
    """A stage of a cascade, sampled as its run says but for what was chosen."""
    system = run.system
    if not isinstance(system, Samples) or previous_of(system) is None:
        chosen = {field: value for field, value in chosen.items() if field not in _AUGMENTATION}
    if number:
        chosen = {field: value for field, value in chosen.items() if field not in _CLASSIFIER}
    sampling = Sampling.from_config(run.config["sampling"], **chosen)
    if "classifier_scale" in chosen and sampling.classifier is None:
        raise ConfigError("classifier_scale says how strongly a classifier guides: name one with --classifier=WORKDIR")
    if sampling.classifier is None:
        return Stage(system, sampling)
    classifier = ability(run.other(sampling.classifier).system, Classifies, f"the classifier {sampling.classifier}")
    return Stage(system, sampling, classifier)


def _placed(abstract: Any, shardings: Any) -> Any:
    """Abstract arrays with shardings."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, shardings)


def per_stage(field: str, values: Sequence[Any], count: int) -> list[Any]:
    """Return one value for each stage, from one for all or one each.

    >>> per_stage("guidance", [2.0], 2)
    [2.0, 2.0]
    """
    if len(values) not in (1, count):
        raise ConfigError(f"{field}: {len(values)} values for {count} stage{'s' * (count > 1)}; give one, or one each")
    return list(values) * (count if len(values) == 1 else 1)
