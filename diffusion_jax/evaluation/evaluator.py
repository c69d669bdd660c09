"""Evaluates points, each a checkpoint with settings of sampling: draws, measures, and records a row for each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.data.files import write_json
from diffusion_jax.evaluation import scores
from diffusion_jax.evaluation.inputs import MetricInputs, Model, Parts, Settings, parts_alone, parts_of
from diffusion_jax.evaluation.measure import measure, sources, write_pictures, write_tables
from diffusion_jax.evaluation.results import Results, Row
from diffusion_jax.evaluation.sweep import Case
from diffusion_jax.features.classifier import gather
from diffusion_jax.inference.cascade import Guided
from diffusion_jax.inference.draw import EARLIER, draw_stages, requests
from diffusion_jax.inference.requests import Requests
from diffusion_jax.inference.runs import Runs, find
from diffusion_jax.inference.sample_sets import open_samples
from diffusion_jax.training import config as configs
from diffusion_jax.training.checkpoints import versions

_LOG = logging.getLogger(__name__)


def evaluate_run(
    workdirs: Sequence[str | os.PathLike] | str | os.PathLike,
    out: str | os.PathLike | None = None,
    settings: Settings | None = None,
    *,
    checkpoints: Sequence[int | None] = (None,),
    overrides: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate one point of a run, or of a cascade of runs, and write what was found.

    Args:
      workdirs: one, or those of each stage in order of resolution.
      out: where results and pictures go; `evaluation` in the last workdir by default.
      checkpoints, overrides, sampling: as `runs.find` takes them.

    Returns:
      The metrics, as in metrics.json: of a cascade's stages, the stage's name goes before ("base_", "cascade_").

    Raises:
      DiffusionError: what cannot be loaded, sampled or written.
    """
    workdirs = [os.fspath(w) for w in ([workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs)]
    evaluator = Evaluator(workdirs, out or Path(workdirs[-1]) / "evaluation", settings or Settings(), overrides)
    row = evaluator.evaluate(Case(tuple(checkpoints), dict(sampling or {})))
    evaluator.close()
    return {**row["metrics"], "num_samples": row["num"], "settings": row["settings"]}


class Evaluator:
    """Evaluates points of a run or of a cascade, and remembers in `results` what it found.

    Args:
      workdirs: of each stage.
      out: the folder of the results.
      settings: how.
      overrides: of the runs' configurations.

    Raises:
      DiffusionError: a folder that cannot be written, a network or a file of statistics that cannot be had.
    """

    def __init__(
        self, workdirs: Sequence[str], out: str | os.PathLike, settings: Settings, overrides: Mapping[str, Any] | None = None
    ) -> None:
        self.workdirs, self.settings, self._overrides = list(workdirs), settings, overrides
        self._configs = [configs.apply_overrides(configs.read(workdir), overrides) for workdir in workdirs]
        self._parts: dict[int, Parts] = {}
        self.results = Results(out)

    def evaluate(self, point: Case) -> Row:
        """The row of a point, from the results where they have it."""
        runs = find(self.workdirs, checkpoints=point.checkpoints, overrides=self._overrides, sampling=point.sampling)
        rows = requests(runs, self.settings.num)
        rows.check(runs.cascade, self.settings.num)
        began = time.monotonic()
        params, steps = runs.load()
        drawn_with = {"stages": runs.settings(params, steps), "num": self.settings.num, "seed": self.settings.seed}
        key = self._key(drawn_with)
        known = self.results.find(key)
        if known is not None:
            _LOG.info("Checkpoint %s %s is evaluated already.", "/".join(map(str, steps)), dict(point.sampling))
            return known
        inputs = [self._subject(runs, number, params[number], rows) for number in range(len(params))]
        for inputs in inputs:
            scores.choose(inputs, self.settings.metrics)  # fails here, before expensive work
        folder = self.results.folder / "samples" / key
        if inputs[-1].kind == "images":
            samples = draw_stages(
                runs, params, rows, folder, drawn_with,
                num=self.settings.num, batch_size=self.settings.batch_size, seed=self.settings.seed,
            )  # fmt: skip
            inputs = [dataclasses.replace(each, samples=drawn) for each, drawn in zip(inputs, samples, strict=True)]
        found = self._measure(inputs)
        tables = write_tables(self.results, key, found)
        row = {
            "key": key, "step": steps[-1], "checkpoints": steps, "sampling": {k: list(v) for k, v in point.sampling.items()},
            "num": self.settings.num, "metrics": found, "pictures": write_pictures(self.results, key, inputs[-1]),
            "tables": tables,
            "settings": {**self.settings.plain(), **drawn_with, **sources(inputs[-1])}, "versions": versions(),
            "seconds": time.monotonic() - began,
        }  # fmt: skip
        self._record(row, folder)
        return row

    def close(self) -> None:
        """Remove what points of a cascade shared; an evaluation that was interrupted before goes on with it."""
        earlier = self.results.folder / "samples" / EARLIER
        if not self.settings.keep_samples and earlier.exists():
            shutil.rmtree(earlier)
            with contextlib.suppress(OSError):
                earlier.parent.rmdir()

    def _key(self, drawn_with: Mapping[str, Any]) -> str:
        """Of all that determines a row."""
        described = {**self.settings.plain(), "keep_samples": None, "batch_size": None, **drawn_with}
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _record(self, row: Row, samples: Path) -> None:
        self.results.add(row)
        with self.results.writing():
            metrics = {**row["metrics"], "num_samples": row["num"], "settings": row["settings"]}
            write_json(self.results.folder / "metrics.json", metrics)
            if not self.settings.keep_samples and samples.exists():
                shutil.rmtree(samples)
                with contextlib.suppress(OSError):  # others are in it
                    samples.parent.rmdir()

    def _subject(self, runs: Runs, number: int, params: Any, rows: Requests) -> MetricInputs:
        """All that is known about a stage's samples before they are drawn."""
        system, config = runs.cascade.stages[number].system, self._configs[number]
        params = params.network if isinstance(params, Guided) else params
        # A classifier draws nothing that would be held against data.
        parts = self._of_data(number) if getattr(system, "draws_images", True) else (None, None, None)
        columns = rows.columns if number == 0 and len(self.workdirs) == 1 else {}
        pipeline = runs.pipeline(0, "test")
        return MetricInputs(
            None, self.settings.num, self.settings, rows.labels(self.settings.num), *parts,
            model=Model(system, params, config["data"], config["seed"]), low_res=columns.get("low_res"),
            originals=gather(pipeline, self.settings.num)["image"] if "low_res" in columns else None,
        )  # fmt: skip

    def _of_data(self, number: int) -> Parts:
        """What a stage's samples are held against, made once."""
        if number not in self._parts:
            self._parts[number] = parts_of(self._configs[number]["data"], self.workdirs[number], self.settings)
        return self._parts[number]

    def _measure(self, inputs: Sequence[MetricInputs]) -> dict[str, Any]:
        """The metrics of every stage; the last stage's are the cascade's own, and only its agreement's name says so."""
        found: dict[str, Any] = {}
        for number, inputs in enumerate(inputs):
            last, prefix = number == len(inputs) - 1, _prefix(number, len(inputs))
            for name, value in measure(inputs, self.settings.metrics).items():
                found[name if last and name != "agreement" else prefix + name] = value
        return found


def _prefix(number: int, count: int) -> str:
    """What goes before the metrics of a stage."""
    return {0: "base_", count - 1: "cascade_"}.get(number, f"stage{number + 1}_") if count > 1 else ""


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
    inputs = MetricInputs(samples, num, settings, None if samples.labels is None else samples.labels[:num], *parts)
    results = Results(out)
    began = time.monotonic()
    settled = {**settings.plain(), "samples": os.path.abspath(path), **sources(inputs)}
    key = hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()[:16]
    found = measure(inputs, settings.metrics)
    row = {
        "key": key, "step": None, "checkpoints": [], "sampling": {"samples": [str(path)]}, "num": num, "metrics": found,
        "pictures": write_pictures(results, key, inputs), "settings": settled, "versions": versions(),
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    results.add(row)
    with results.writing():
        write_json(results.folder / "metrics.json", {**found, "num_samples": num, "settings": settled})
    return {**found, "num_samples": num, "settings": settled}
