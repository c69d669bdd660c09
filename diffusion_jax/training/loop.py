"""The training loop: the same program for one process or many, resumed by running it again."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import interrupts, processes
from diffusion_jax.errors import ConfigError
from diffusion_jax.files import only_writer, sweep_temporary
from diffusion_jax.systems import Reports, Sampling
from diffusion_jax.training import config as configs
from diffusion_jax.training import data_record
from diffusion_jax.training.checkpoints import Checkpointer
from diffusion_jax.training.metrics import Clock, CollapseWatch, Progress, Writers
from diffusion_jax.training.previews import GridWriter, HeldOut, fixed_batch
from diffusion_jax.training.program import Program, prepare
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import summarize

logger = logging.getLogger("diffusion_jax.train")


def train(config: Any, workdir: str | Path, *, allow_other_data: bool = False) -> dict[str, Any]:
    """Train, or go on with, the run in a working directory.

    Args:
      config: the recipe; what it does not say is in `config.DEFAULTS`.
      workdir: for config.json, data.json (what the data were), checkpoints/, metrics.jsonl, tensorboard/ and grids/. If
        it holds checkpoints of the same configuration, training goes on from the newest readable one, with the same numbers
        as if never stopped.
      allow_other_data: go on where the data are not those that the run began with; the difference is logged.

    Returns:
      The last row of metrics, with "step", "skipped" and "interrupted".

    Raises:
      ConfigError, DataError: before anything is compiled or written; another program trains there; all steps are skipped.
      CheckpointError: the directory holds another run, is not writable, or a save failed.
      DiffusionError: processes of one job differ in configuration or data.
    """
    config = configs.complete(config)
    processes.check_alike("the configuration", configs.recorded(config))
    configs.check_owner(workdir, config)
    program = prepare(config)
    processes.check_alike("the data", data_record.data_identity(program.pipeline))
    data_record.check(workdir, program.pipeline.source, allow_other_data)
    with contextlib.ExitStack() as held:
        processes.by_first(lambda: held.enter_context(only_writer(Path(workdir), "training")))
        if jax.process_index() == 0:
            sweep_temporary(Path(workdir))
            configs.claim(workdir, config)
        data_record.write(workdir, program.pipeline.source)
        return _train(program, workdir)


def _train(program: Program, workdir: str | Path) -> dict[str, Any]:
    training = program.config["training"]
    checkpointer = Checkpointer(workdir, training["keep_last"], training["keep_every"])
    try:
        state = checkpointer.restore_latest(program.target)
        start = 0 if state is None else int(state.step)
        sums = program.zero_metrics() if state is None else checkpointer.restore_sums(start, program.zero_metrics())
        frozen = program.load_frozen(workdir)
        logger.info(
            "%s step %d of %d in %s: %s parameters, %d examples, %d device(s)",
            "Resuming at" if start else "Starting at", start, training["steps"], workdir,
            f"{program.num_params():,}", len(program.pipeline), program.mesh.size,
        )  # fmt: skip
        if start >= training["steps"]:
            logger.warning("Nothing to train: step %d is reached; raise training.steps to go on.", start)
        state = _init(program, frozen) if state is None else dataclasses.replace(state, frozen=frozen)
        loop, sums = Loop(program, checkpointer, workdir, start), program.put_metrics(sums)
        with stop_requests() as stop:
            done = loop.run(state, sums, stop)
    except BaseException:
        checkpointer.close(failed=True)
        raise
    checkpointer.close()
    return done


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
    """Say that something is compiled, and how long it took: it can be minutes."""
    logger.info("Compiling %s ...", what)
    began = time.perf_counter()
    yield
    logger.info("Compiled %s in %.1f s.", what, time.perf_counter() - began)


def _init(program: Program, frozen: Any) -> TrainState:
    with compiling("the first parameters"):
        return jax.block_until_ready(program.init(frozen))


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or Ctrl-C sets; see `interrupts.stop_requests`.

    With several processes a stop must come to all of them at the same step, which JAX's own notifier sees to on SIGTERM
    (`Checkpointer.reached_preemption`): Ctrl-C is handed on to it.
    """
    message = "stopping after this step and saving; Ctrl-C again to stop at once"
    if jax.process_count() > 1:
        with interrupts.stop_requests(message, hand_on=signal.SIGTERM):
            yield threading.Event()
        return
    with interrupts.stop_requests(message) as stop:
        yield stop


class Loop:
    """What happens between steps: logging, saving, grids, held-out loss.

    Args:
      workdir: for metrics and grids.
      start: the step from which the run goes on.
    """

    def __init__(self, program: Program, checkpointer: Checkpointer, workdir: str | Path, start: int) -> None:
        self._program, self._checkpointer, self._start = program, checkpointer, start
        self._training = program.config["training"]
        self._grid = self._make_grid(workdir) if self._training["grid_every"] else None
        self._held_out = HeldOut(program) if self._training["eval_every"] else None
        flops = None
        if start < self._training["steps"]:
            with compiling("the training step"):
                flops = program.flops
        self._clock = Clock(program.pipeline.batch_size, flops)
        self._writers = Writers(workdir, start, self._training["tensorboard"])
        self._watch = CollapseWatch()
        for row in self._writers.kept:
            self._watch.update(row)
        self._row: dict[str, float] = self._writers.kept[-1] if self._writers.kept else {}
        self._skipped, self._seen, self._on_end = 0, start, 0
        self._looked: set[str] = set()
        self._progress = Progress(start, self._training["steps"])

    def _make_grid(self, workdir: str | Path) -> GridWriter:
        program = self._program
        sampling = Sampling.from_config(program.config["sampling"])
        batch = fixed_batch(program.data, self._training["grid_samples"])
        return GridWriter(workdir, program.system, sampling, batch, program.config["seed"], program.mesh)

    def run(self, state: TrainState, sums: Any, stop: threading.Event) -> dict[str, Any]:
        """Train from the state's step to the last; the host waits for the device to log and to save, and else never."""
        program, total, step = self._program, self._training["steps"], self._start
        advance = program.step if step < total else None
        batches = program.pipeline.batches(step) if step < total else iter(())
        stopping, self._skipped = False, int(jax.device_get(state.skipped))
        self._clock.reset()
        try:
            while step < total and not stopping:
                began = time.perf_counter()
                batch = program.put(next(batches))
                self._clock.step(time.perf_counter() - began)
                state, sums = advance(state, sums, batch)
                step += 1
                stopping = stop.is_set() or self._checkpointer.reached_preemption(step)
                sums = self._after(step, state, sums, stopping)
            self._checkpointer.wait()
        finally:
            self._progress.close()
            self._writers.close()
        if step < total:
            logger.warning("Stopped: saved step %d. Run the same command again to go on.", step)
        return {**self._row, "step": step, "skipped": int(jax.device_get(state.skipped)), "interrupted": step < total}

    def _after(self, step: int, state: TrainState, sums: Any, stopping: bool) -> Any:
        """Log, look and save where it is time to; returns the metric sums to go on with.

        Rows are written before the checkpoint of their step, so that a run resumed from it has them. A run that is
        asked to stop saves first: there may be little time.
        """
        last = step == self._training["steps"]
        row = {}
        if last or step % self._training["log_every"] == 0:
            row, sums = self._summary(step, state, sums), self._program.zero_metrics()
            self._checkpointer.check()
        if not stopping:
            row |= self._look(step, state)
        self._write(step, row)
        if stopping or last or step % self._training["checkpoint_every"] == 0:
            self._checkpointer.save(state, step, configs.recorded(self._program.config), sums)
        if stopping:
            self._checkpointer.wait()
            self._write(step, self._look(step, state))
        return sums

    def _write(self, step: int, row: dict[str, float]) -> None:
        if row:
            self._writers.write(step, row)
        if "loss" in row:
            self._row = row
            self._progress.update(step, row)

    def _summary(self, step: int, state: TrainState, sums: Any) -> dict[str, float]:
        """The row of the interval that ends here."""
        sums, skipped = jax.device_get((sums, state.skipped))
        row = {**summarize(sums), **self._clock.row()}
        self._clock.reset()
        if isinstance(self._program.system, Reports):
            row |= self._program.system.report(state.system_state)  # it fetches what it needs: not all is on every host
        row["skipped_steps"] = int(skipped)
        self._count_skipped(step, int(skipped))
        reports = self._watch.update(row)
        for message in reports:
            logger.warning("Step %d: %s.", step, message)
        return {**row, "collapse_reports": len(reports)} if reports else row

    def _count_skipped(self, step: int, skipped: int) -> None:
        """Say what was skipped since the last row, and stop a run that takes no step any more."""
        here, steps = skipped - self._skipped, step - self._seen
        self._skipped, self._seen = skipped, step
        if here:
            logger.warning("Skipped %d step(s) up to %d: loss or gradient not finite.", here, step)
        self._on_end = self._on_end + here if here == steps else 0
        limit, last = self._training["max_skipped"], step == self._training["steps"]
        if limit and (self._on_end >= limit or (last and skipped == step)):
            raise ConfigError(
                f"the last {self._on_end} steps up to {step} were all skipped, since loss or gradient was not finite: lower "
                "optimizer.learning_rate, or look at the data (training.max_skipped: after how many a run stops, 0 is never)"
            )

    def _first(self, what: str) -> Any:
        """What is said when something is compiled, which happens as it is first used."""
        if what in self._looked:
            return contextlib.nullcontext()
        self._looked.add(what)
        return compiling(what)

    def _look(self, step: int, state: TrainState) -> dict[str, float]:
        """Held-out loss and grids, at their steps, with the weights that sampling uses."""
        began, row = time.perf_counter(), {}
        average = self._program.averages[0].label
        if self._held_out and step % self._training["eval_every"] == 0:
            with self._first("the held-out loss"):
                row |= self._held_out(state.ema[average], state)
        if self._grid and step % self._training["grid_every"] == 0:
            weights = {f"EMA {average}": state.ema[average], "raw weights": state.params}
            with self._first("the sampler of grids"):
                picture = self._grid.write(step, weights, state.frozen)
            self._writers.image(step, "samples", picture)
        self._clock.leave_out(time.perf_counter() - began)
        return row
