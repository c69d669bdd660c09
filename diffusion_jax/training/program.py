"""A configured run: its parts, checked against each other, and its compiled step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax import systems
from diffusion_jax.data import Data, Pipeline
from diffusion_jax.models import activation_sharding
from diffusion_jax.systems import PlansSteps, Samples, Sampling, System
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training import frozen as frozens
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training import optimizer as optimizers
from diffusion_jax.training.state import Trainable, TrainState, first_params, init_state
from diffusion_jax.training.step import TrainStep, add_metrics


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What the loop drives.

    Attributes:
      config: complete, as plain data.
      data: its splits, each opened once.
      pipeline: this process's share of the training data.
      mesh: of the devices.
      train_step: what a step does, with the system, the averages and an optimiser for each group of parameters.
      target: the abstract state with shardings.
    """

    config: dict[str, Any]
    data: Data
    pipeline: Pipeline
    mesh: jax.sharding.Mesh
    train_step: TrainStep
    target: TrainState

    @property
    def system(self) -> System:
        """The system that is trained."""
        return self.train_step.system

    @property
    def averages(self) -> tuple[emas.Ema, ...]:
        """The averages that are kept; the first serves sampling."""
        return self.train_step.averages

    def load_frozen(self, workdir: Any = None) -> dict[str, Any]:
        """Load what training reads and never changes onto the mesh; see `frozen.load`."""
        return frozens.load(self.config["frozen"], self.target.frozen, workdir)

    def init(self, frozen: Mapping[str, Any] | None = None) -> TrainState:
        """Make a fresh state, sharded from the start: no array is ever whole on one device.

        Args:
          frozen: as `load_frozen` returns it; the state holds it too.
        """
        return dataclasses.replace(self._init(frozen or {}), frozen=frozen or {})

    @functools.cached_property
    def _init(self) -> Any:
        step = self.train_step

        def fresh(frozen: Any) -> TrainState:
            params = first_params(step.system, step.seed, frozen)
            return init_state(step.system, params, step.optimizers, step.averages, step.trainable)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, dataclasses.replace(self.target, frozen={}))
        return jax.jit(fresh, out_shardings=shardings)

    @functools.cached_property
    def step(self) -> Any:
        """The compiled (state, metric sums, batch) -> (state, metric sums), which consumes its first two arguments."""
        return self.lowered.compile()

    @functools.cached_property
    def lowered(self) -> Any:
        """The step before it is compiled."""

        def step(state: TrainState, sums: Any, batch: Any) -> tuple[TrainState, Any]:
            state, metrics = self._traced(state, batch)
            return state, add_metrics(sums, metrics)

        whole = meshes.replicated(self.mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.target)
        sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), self._zeros)
        with self._sharding_activations():
            return jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, whole)).lower(self.target, sums, self._batch)

    @functools.cached_property
    def _traced(self) -> Any:
        """The step as one traced function, whose outputs' shapes are known before it is lowered, at no second tracing."""
        return jax.jit(self.train_step, inline=True)

    @functools.cached_property
    def _batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows, size = meshes.batch_sharding(self.mesh), self.pipeline.batch_size
        return {
            key: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype, sharding=rows)
            for key, value in meshes.numeric(self.pipeline.batch(0)).items()
        }

    def _sharding_activations(self) -> Any:
        return activation_sharding(meshes.batch_sharding(self.mesh) if self.mesh.size > 1 else None)

    @functools.cached_property
    def _zeros(self) -> Any:
        with self._sharding_activations():
            _, metrics = jax.eval_shape(self._traced, self.target, self._batch)
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), metrics)

    @property
    def flops(self) -> float | None:
        """Of a step, on each device, as the compiler counts them; None where it does not say."""
        return (self.step.cost_analysis() or {}).get("flops")

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Place this host's rows as part of the global batch."""
        return meshes.put_batch(batch, meshes.batch_sharding(self.mesh), self.pipeline.batch_size)

    def zero_metrics(self) -> Any:
        """Return fresh metric sums, on every device."""
        return self.put_metrics(self._zeros)

    def put_metrics(self, sums: Any) -> Any:
        """Place metric sums on every device."""
        return jax.device_put(sums, meshes.replicated(self.mesh))

    def num_params(self) -> int:
        """Count the parameters that are trained."""
        trained = self.train_step.trainable.pick(self.target.params)
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained))


def prepare(config: Any, devices: Any = None) -> Program:
    """Check a configuration and build its parts; nothing is compiled, trained or written.

    Args:
      config: the recipe; what it does not say is in `config.DEFAULTS`.
      devices: of the mesh; all by default.

    Raises:
      ConfigError, DataError: what is unknown, missing, or does not fit together.
      CheckpointError: a frozen run or file that is not there.
    """
    config = configs.complete(config)
    training, seed = config["training"], config["seed"]
    mesh = meshes.make_mesh(config["mesh"], devices)
    system = systems.from_config(config)
    if isinstance(system, Samples):
        system.check_sampling(Sampling.from_config(config["sampling"]))
    if isinstance(system, PlansSteps):
        system.check_steps(training["steps"])
    frozen = frozens.check(system, config["frozen"])
    params = jax.eval_shape(lambda frozen: first_params(system, seed, frozen), frozen)
    trainable = Trainable(tuple(training["trainable"]))
    trainable.check(params)
    optimizer, rates = optimizers.by_group(config["optimizer"], params, training["steps"])
    meshes.check_batch(mesh, config["data"].get("batch_size"), training["accumulate"])
    averages = emas.from_config(training["ema"], config["data"]["batch_size"])
    host, hosts = meshes.host_share(mesh)
    data = Data(config["data"], seed=seed)
    pipeline = data.pipeline("train", host=host, hosts=hosts)
    system.check(pipeline)
    step = TrainStep(system, optimizer, averages, seed, training["accumulate"], trainable, rates)
    abstract = jax.eval_shape(lambda params: init_state(system, params, optimizer, averages, trainable), params)
    abstract = dataclasses.replace(abstract, frozen=frozen)
    shardings = meshes.state_shardings(mesh, abstract, config["mesh"]["rules"])
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    return Program(config, data, pipeline, mesh, step, target)
