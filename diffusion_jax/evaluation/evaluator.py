"""Evaluates cases, each a checkpoint with settings of sampling, or given images: draws, measures, records a row for each."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import identity, processes
from diffusion_jax.evaluation import scores
from diffusion_jax.evaluation.inputs import MetricInputs, Model, Parts, Settings, parts_alone, parts_of
from diffusion_jax.evaluation.measuring import measure, sources, write_pictures, write_tables
from diffusion_jax.evaluation.results import Results, Row, metrics_of
from diffusion_jax.evaluation.sweep import Case
from diffusion_jax.files import user_path
from diffusion_jax.inference import requests
from diffusion_jax.inference.draw import EARLIER, Drawing
from diffusion_jax.inference.requests import Requests
from diffusion_jax.inference.run import Run, Runs
from diffusion_jax.inference.sample_sets import SampleSet, open_samples
from diffusion_jax.systems import Samples

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
    """Evaluate one case of a run, or of a cascade of runs, and write what was found.

    Args:
      workdirs: one, or those of each stage in order of resolution.
      out: where results and pictures go; `evaluation` in the last workdir by default.
      checkpoints, overrides, sampling: as `run.find` takes them.

    Returns:
      The metrics, as in metrics.json: of a cascade's stages, the stage's name goes before ("base_", "cascade_").

    Raises:
      DiffusionError: what cannot be loaded, sampled or written.
    """
    workdirs = [os.fspath(w) for w in ([workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs)]
    evaluator = Evaluator(workdirs, out or user_path(workdirs[-1]) / "evaluation", settings or Settings(), overrides)
    with evaluator.results.held():
        row = evaluator.evaluate(Case(tuple(checkpoints), dict(sampling or {})))
        evaluator.close()
        return metrics_of(row)


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
    scores.check_names(settings.metrics)
    num, results = min(settings.num, samples.count), Results(out)
    with results.held():
        parts = parts_alone(settings) if workdir is None else parts_of(Run(workdir), settings)
        inputs = MetricInputs(samples, num, settings, parts, None if samples.labels is None else samples.labels[:num])
        began = time.monotonic()
        settled = {**settings.plain(), "samples": os.path.abspath(user_path(path)), **sources(inputs)}
        row = _row(results, identity.digest(settled), inputs, measure(inputs, settings.metrics), settled, began)
        results.add({**row, "step": None, "checkpoints": [], "sampling": {"samples": [str(path)]}})
        results.show(results.rows[-1])
        return metrics_of(results.rows[-1])


class Evaluator:
    """Evaluates cases of a run or of a cascade, and remembers in `results` what it found.

    Where there are several processes all must evaluate the same cases: they draw and measure together, the first one writes.

    Args:
      workdirs: of each stage.
      out: the folder of the results.
      settings: how.
      overrides: of the runs' configurations.
      mesh: see `Run`.

    Raises:
      DiffusionError: a folder that cannot be written, a network or a file of statistics that cannot be had.
    """

    def __init__(
        self,
        workdirs: Sequence[str],
        out: str | os.PathLike,
        settings: Settings,
        overrides: Mapping[str, Any] | None = None,
        mesh: Mapping[str, int] | None = None,
    ) -> None:
        scores.check_names(settings.metrics)
        self.settings, self.runs = settings, [Run(workdir, overrides, mesh) for workdir in workdirs]
        self._parts: dict[int, Parts] = {}
        self.results = Results(out)

    def evaluate(self, case: Case) -> Row:
        """Return the row of a case, from the results where they have it.

        Raises:
          DiffusionError: what cannot be loaded, sampled or written, or another evaluation in the folder.
        """
        with self.results.held():
            row = self._evaluate(case)
            self.results.show(row)
            return row

    def _evaluate(self, case: Case) -> Row:
        began = time.monotonic()
        if len(self.runs) == 1 and not isinstance(self.runs[0].system, Samples):
            return self._of_losses(case, began)
        runs = Runs.of(self.runs, case.checkpoints, case.sampling)
        asked, _ = requests.ask(runs.cascade.conditioners, self.runs[0].data, self.settings.num)
        asked.check(runs.cascade, self.settings.num)
        params, steps = runs.load()
        drawn_with = {"stages": runs.settings(params, steps), **self._numbers}
        key = self._key(drawn_with)
        known = self._known(key, case, steps)
        if known is not None:
            return known
        folder = self.results.folder / "samples" / key
        drawing = Drawing(
            runs.cascade, params, asked, folder, drawn_with,
            num=self.settings.num, batch_size=self.settings.batch_size, seed=self.settings.seed,
        )  # fmt: skip
        with _meanwhile(drawing) as drawn:
            inputs = [self._inputs(number, weights.own, asked, drawn) for number, weights in enumerate(params)]
            for each in inputs:
                scores.choose(each, self.settings.metrics)  # what is lacking is said before anything is measured
            row = self._row_of(case, key, inputs, drawn_with, steps, began)
        if not self.settings.keep_samples:
            self._remove(folder)
        return row

    @property
    def _numbers(self) -> dict[str, int]:
        return {"num": self.settings.num, "seed": self.settings.seed}

    def _of_losses(self, case: Case, began: float) -> Row:
        """The row of a run that draws nothing, such as a noisy classifier."""
        (run,) = self.runs
        weights = run.config["sampling"].get("weights", "ema")
        step = case.checkpoints[0]
        described = {"stages": [run.identity(step, weights)], **self._numbers}
        key, (params, found) = self._key(described), run.load(step, weights)
        known = self._known(key, case, [found])
        if known is not None:
            return known
        inputs = MetricInputs(None, self.settings.num, self.settings, Parts(), model=Model(run, params), name="the model")
        return self._row_of(case, key, [inputs], described, [found], began)

    def _key(self, described: Mapping[str, Any]) -> str:
        """Of all that determines a row."""
        return identity.digest({**self.settings.plain(), "keep_samples": None, "batch_size": None, **described})

    def _known(self, key: str, case: Case, steps: Sequence[int]) -> Row | None:
        """The row of earlier results; the first process's folder decides for all."""
        found = processes.agreed(self.results.find(key))
        if found is not None:
            _LOG.info("Checkpoint %s %s is evaluated already.", "/".join(map(str, steps)), dict(case.sampling))
        return found

    def _inputs(self, number: int, params: Any, asked: Requests, drawn: Callable[[], list[SampleSet]]) -> MetricInputs:
        """All that is known about a stage's samples, which may still be drawn."""
        if number not in self._parts:
            compared = scores.compare_with_data(self.settings.metrics)  # else no classifier is trained
            self._parts[number] = parts_of(self.runs[number], self.settings) if compared else Parts()
        several = len(self.runs) > 1
        return MetricInputs(
            lambda: drawn()[number], self.settings.num, self.settings, self._parts[number],
            labels=asked.labels(self.settings.num), model=Model(self.runs[number], params),
            low_res=None if several else asked.columns.get("low_res"), name=f"stage {number + 1}" if several else "the samples",
        )  # fmt: skip

    def _row_of(
        self, case: Case, key: str, inputs: Sequence[MetricInputs], described: Mapping[str, Any], steps: Sequence[int],
        began: float,
    ) -> Row:  # fmt: skip
        settled = {**self.settings.plain(), **described, **sources(inputs[-1])}
        row = _row(self.results, key, inputs[-1], self._measure(inputs), settled, began)
        row |= {"step": steps[-1], "checkpoints": list(steps), "sampling": {k: list(v) for k, v in case.sampling.items()}}
        self.results.add(row)
        return self.results.rows[-1]

    def _measure(self, inputs: Sequence[MetricInputs]) -> dict[str, Any]:
        """The metrics of every stage; the last stage's are the cascade's own, and only its agreement's name says so."""
        found: dict[str, Any] = {}
        for number, each in enumerate(inputs):
            last, prefix = number == len(inputs) - 1, _prefix(number, len(inputs))
            for name, value in measure(each, self.settings.metrics).items():
                found[name if last and name != "agreement" else prefix + name] = value
        return found

    def close(self) -> None:
        """Remove what cases of a cascade shared; an evaluation that was interrupted before goes on with it."""
        if not self.settings.keep_samples:
            self._remove(self.results.folder / "samples" / EARLIER)

    def _remove(self, folder: Path) -> None:
        processes.barrier(f"samples in {folder} are measured")
        if processes.is_first() and folder.exists():
            with self.results.writing():
                shutil.rmtree(folder)
                with contextlib.suppress(OSError):  # others are in it
                    folder.parent.rmdir()


@contextlib.contextmanager
def _meanwhile(drawing: Drawing) -> Iterator[Callable[[], list[SampleSet]]]:
    """Draw in the background; what waits for the samples is given. Processes that draw together do nothing else meanwhile."""
    if jax.process_count() > 1:
        drawn = drawing()
        yield lambda: drawn
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="draw")
    drawn = pool.submit(drawing)
    try:
        yield drawn.result
    except BaseException as error:
        drawing.stop()
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt))  # which a compiler would keep waiting
        raise
    pool.shutdown()


def _row(
    results: Results, key: str, inputs: MetricInputs, found: dict[str, Any], settled: Mapping[str, Any], began: float
) -> Row:
    """A row, with its tables and pictures written."""
    tables = write_tables(results, key, found)
    return {
        "key": key, "num": inputs.num, "metrics": found, "pictures": write_pictures(results, key, inputs), "tables": tables,
        "settings": dict(settled), "versions": identity.versions(), "seconds": time.monotonic() - began,
    }  # fmt: skip


def _prefix(number: int, count: int) -> str:
    """What goes before the metrics of a stage."""
    return {0: "base_", count - 1: "cascade_"}.get(number, f"stage{number + 1}_") if count > 1 else ""
