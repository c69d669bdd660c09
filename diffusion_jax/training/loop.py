"""The training loop: the same program for one process or many, resumed by running it again."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import data, systems
from diffusion_jax.errors import CheckpointError
from diffusion_jax.models import activation_sharding
from diffusion_jax.rng import named
from diffusion_jax.systems import Sampling
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training import optimizer as optimizers
from diffusion_jax.training.checkpoints import Checkpointer, restore_weights
from diffusion_jax.training.collapse import CollapseWatch
from diffusion_jax.training.grids import GridWriter
from diffusion_jax.training.metrics import Clock, Progress, Writers
from diffusion_jax.training.state import TrainState, init_state
from diffusion_jax.training.step import make_step, summarize, zero_metrics

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """A configured run, compiled: what the loop drives.

    Attributes:
      config: complete, as plain data.
      step: the compiled step (state, metric sums, batch) -> (state, metric sums); it consumes its first two arguments.
      init: () -> a fresh, sharded state.
      target: the abstract state with shardings.
    """

    config: dict[str, Any]
    system: Any
    pipeline: data.Pipeline
    mesh: jax.sharding.Mesh
    averages: tuple[emas.Ema, ...]
    rate: Any
    step: Any
    init: Any
    target: TrainState

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """This host's rows as part of the global batch."""
        return meshes.put_batch(batch, meshes.batch_sharding(self.mesh))

    def zero_metrics(self) -> Any:
        """Fresh metric sums, on every device."""
        return jax.device_put(zero_metrics(), meshes.replicated(self.mesh))

    def num_params(self) -> int:
        """The number of trained parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.target.params))


def prepare(config: Any, devices: Any = None) -> Program:
    """Check a configuration, build its parts and compile its step; nothing is trained or written.

    Raises:
      ConfigError, DataError: what is unknown, missing, or does not fit together.
    """
    config = configs.complete(config)
    training = config["training"]
    mesh = meshes.make_mesh(config["mesh"], devices)
    system = systems.from_config(config)
    optimizer, rate = optimizers.from_config(config["optimizer"], training["steps"])
    averages = emas.from_config(training["ema"])
    system.check_sampling(Sampling.from_config(config["sampling"]))
    pipeline = data.from_config(
        config["data"], seed=config["seed"], host=jax.process_index(), hosts=jax.process_count()
    )
    system.check(pipeline)
    meshes.check_batch(mesh, pipeline.batch_size, training["accumulate"])

    def init() -> TrainState:
        return init_state(system, optimizer, averages, config["seed"])

    abstract = jax.eval_shape(init)
    shardings = meshes.state_shardings(mesh, abstract, config["mesh"]["rules"])
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    step = make_step(system, optimizer, averages, config["seed"], training["accumulate"])
    compiled = _compile(step, mesh, shardings, target, pipeline)
    return Program(
        config, system, pipeline, mesh, averages, rate, compiled, jax.jit(init, out_shardings=shardings), target
    )


def _compile(step: Any, mesh: Any, shardings: Any, target: TrainState, pipeline: data.Pipeline) -> Any:
    whole, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    example = {key: value for key, value in pipeline.batch(0).items() if value.dtype != object}
    batch = {
        key: jax.ShapeDtypeStruct((pipeline.batch_size, *value.shape[1:]), value.dtype, sharding=rows)
        for key, value in example.items()
    }
    sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(zero_metrics))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, whole))
    with activation_sharding(rows if mesh.size > 1 else None):
        return jitted.lower(target, sums, batch).compile()


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Set when SIGTERM or SIGINT asks to stop; the second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Train, or go on with, the run in a working directory.

    Args:
      config: the recipe; what it does not say is in `config.DEFAULTS`.
      workdir: for config.json, checkpoints/, metrics.jsonl, tensorboard/ and grids/. If it holds checkpoints of the
        same configuration, training goes on from the newest readable one, with the same numbers as if never stopped.

    Returns:
      The last row of metrics, with "step", "skipped" and "interrupted".

    Raises:
      ConfigError, DataError: before anything is compiled or written.
      CheckpointError: the directory holds another run, is not writable, or a save failed.
    """
    config = configs.complete(config)
    if jax.process_index() == 0 or not (Path(workdir) / "config.json").exists():
        configs.claim(workdir, config)
    program = prepare(config)
    training = program.config["training"]
    checkpointer = Checkpointer(workdir, training["keep_last"], training["keep_every"])
    state = checkpointer.restore_latest(program.target)
    start = int(state.step) if state is not None else 0
    if state is None:
        state = program.init()
    logger.info(
        "%s step %d of %d in %s: %s parameters, %d examples, %d device(s)", "Resuming at" if start else "Starting at",
        start, training["steps"], workdir, f"{program.num_params():,}", len(program.pipeline), program.mesh.size,
    )  # fmt: skip
    loop = _Loop(program, checkpointer, workdir, start)
    try:
        with _stop_signal() as stop:
            return loop.run(state, stop)
    finally:
        loop.close()


class _Loop:
    """What happens between steps: logging, saving, grids, held-out loss."""

    def __init__(self, program: Program, checkpointer: Checkpointer, workdir: str | Path, start: int) -> None:
        self._program, self._checkpointer, self._start = program, checkpointer, start
        self._training = program.config["training"]
        self._writers = Writers(workdir, start, self._training["tensorboard"])
        costs = program.step.cost_analysis() or {}
        self._clock = Clock(program.pipeline.batch_size, costs.get("flops"))
        self._progress = Progress(start, self._training["steps"])
        self._watch = CollapseWatch()
        self._grid = self._make_grid(workdir) if self._training["grid_every"] else None
        self._held_out = _HeldOut(program) if self._training["eval_every"] else None
        self._row: dict[str, float] = {}
        self._skipped = 0

    def _make_grid(self, workdir: str | Path) -> GridWriter:
        program = self._program
        batch = next(program.pipeline.one_pass(self._training["grid_samples"], self._training["grid_samples"]))
        sampling = Sampling.from_config(program.config["sampling"])
        return GridWriter(
            workdir, program.system, sampling, batch, program.config["seed"], meshes.replicated(program.mesh)
        )

    def run(self, state: TrainState, stop: threading.Event) -> dict[str, Any]:
        """From the state's step to the last; the host never waits for the device but to log and to save."""
        program, total = self._program, self._training["steps"]
        metrics, step = program.zero_metrics(), self._start
        batches = program.pipeline.batches(self._start) if step < total else iter(())
        self._clock.reset()
        while step < total:
            began = time.perf_counter()
            batch = program.put(next(batches))
            self._clock.step(time.perf_counter() - began)
            state, metrics = program.step(state, metrics, batch)
            step += 1
            if step % self._training["log_every"] == 0 or step == total:
                self._log(step, state, metrics)
                metrics = program.zero_metrics()
            stopping = stop.is_set() or self._checkpointer.reached_preemption(step)
            if stopping or step % self._training["checkpoint_every"] == 0 or step == total:
                self._checkpointer.save(state, step, program.config)
            self._look(step, state)
            if stopping and step < total:
                self._checkpointer.wait()
                logger.warning("Asked to stop: saved step %d. Run the same command again to go on.", step)
                return {**self._row, "step": step, "skipped": self._skipped, "interrupted": True}
        self._checkpointer.wait()
        return {**self._row, "step": step, "skipped": int(state.skipped), "interrupted": False}

    def _log(self, step: int, state: TrainState, metrics: Any) -> None:
        sums, skipped = jax.device_get((metrics, state.skipped))
        row = {**summarize(sums), **self._clock.row(), "learning_rate": float(self._program.rate(step - 1))}
        row["skipped_steps"] = int(skipped)
        if skipped > self._skipped:
            logger.warning("Skipped %d step(s) up to %d: loss or gradient not finite.", skipped - self._skipped, step)
        for message in self._watch.update(row):
            logger.warning("Step %d: %s.", step, message)
            row["collapse_reports"] = row.get("collapse_reports", 0) + 1
        self._skipped, self._row = int(skipped), row
        self._writers.write(step, row)
        self._progress.update(step, row)
        self._clock.reset()

    def _look(self, step: int, state: TrainState) -> None:
        """Grids and held-out loss, at their steps."""
        average = self._program.averages[0].label
        looked = False
        if self._grid and step % self._training["grid_every"] == 0:
            picture = self._grid.write(step, {f"EMA {average}": state.ema[average], "raw weights": state.params})
            self._writers.image(step, "samples", picture)
            looked = True
        if self._held_out and step % self._training["eval_every"] == 0:
            row = {"held_out_loss": self._held_out(state.ema[average], state.system_state)}
            self._writers.write(step, row)
            looked = True
        if looked:
            self._clock.reset()

    def close(self) -> None:
        """Finish files and saves, whatever ended the run."""
        self._progress.close()
        self._writers.close()
        self._checkpointer.close()


class _HeldOut:
    """The loss of the averaged weights on a fixed part of the held-out data, with fixed noise."""

    def __init__(self, program: Program) -> None:
        config, system = program.config, program.system
        pipeline = data.from_config(config["data"], seed=config["seed"], split="test")
        size = min(pipeline.batch_size, len(pipeline))
        size -= size % (program.mesh.shape["data"] * program.mesh.shape["fsdp"]) or 0
        limit = min(config["training"]["eval_examples"], len(pipeline)) // max(size, 1) * size or size
        self._batches = [
            jax.device_put(
                {key: value for key, value in batch.items() if value.dtype != object},
                meshes.batch_sharding(program.mesh),
            )
            for batch in pipeline.one_pass(size, limit)
        ]
        key = named(jax.random.key(config["seed"]), "held out")

        def loss(params: Any, state: Any, batch: Any, number: Any) -> jax.Array:
            return system.loss(params, state, batch, named(key, number), train=False)[0]

        self._loss = jax.jit(loss, out_shardings=meshes.replicated(program.mesh))

    def __call__(self, params: Any, state: Any) -> float:
        return float(np.mean([self._loss(params, state, batch, i) for i, batch in enumerate(self._batches)]))


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, ready to be sampled.

    Attributes:
      config: complete, as plain data.
      system: built from it.
      params: the weights asked for.
      step: of the checkpoint.
    """

    config: dict[str, Any]
    system: Any
    params: Any
    step: int


def load_run(
    workdir: str | Path, step: int | None = None, overrides: Mapping[str, Any] | None = None, weights: str = "ema"
) -> Run:
    """Load a run's weights.

    Args:
      step: of the checkpoint; the newest readable one by default.
      overrides: dotted fields of the configuration to replace, such as {"sampling.steps": 10}.
      weights: "ema" (the first average), "raw", or the label of an average.

    Raises:
      CheckpointError: no run, no such checkpoint, no such average.
    """
    config = configs.apply_overrides(configs.read(workdir), overrides)
    system = systems.from_config(config)
    labels = [average.label for average in emas.from_config(config["training"]["ema"])]
    chosen = labels[0] if weights == "ema" else weights
    if chosen not in ("raw", *labels):
        raise CheckpointError(f"{workdir} has no weights {weights!r} (it has: ema, raw, {', '.join(labels)})")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    params, found = restore_weights(workdir, target, chosen, step)
    return Run(config, system, params, found)
