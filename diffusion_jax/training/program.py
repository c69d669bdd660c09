"""A configured run: its parts, checked against each other, and its compiled step."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax import data, systems
from diffusion_jax.models import activation_sharding
from diffusion_jax.systems import Sampling
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training import optimizer as optimizers
from diffusion_jax.training import teachers
from diffusion_jax.training.state import TrainState, init_state
from diffusion_jax.training.step import make_step, zero_metrics

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What the loop drives.

    Attributes:
      config: complete, as plain data.
      system, pipeline, averages: built from it.
      mesh: of the devices.
      optimizer, rate: the gradient transformation, and its learning rate by the number of updates.
      target: the abstract state with shardings.
    """

    config: dict[str, Any]
    system: Any
    pipeline: data.Pipeline
    mesh: jax.sharding.Mesh
    averages: tuple[emas.Ema, ...]
    optimizer: Any
    rate: Any
    target: TrainState

    def init(self, frozen: Any = None) -> TrainState:
        """A fresh state, sharded from the start: no array is ever whole on one device.

        Args:
          frozen: see `TrainState`; the state returned is still without it.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, dataclasses.replace(self.target, frozen={}))
        return jax.jit(self._fresh, out_shardings=shardings)(frozen)

    def _fresh(self, frozen: Any) -> TrainState:
        return init_state(self.system, self.optimizer, self.averages, self.config["seed"], frozen)

    @functools.cached_property
    def step(self) -> Any:
        """(state, metric sums, batch) -> (state, metric sums), compiled once; it consumes its first two arguments."""
        return self.lowered.compile()

    @functools.cached_property
    def lowered(self) -> Any:
        """The step before it is compiled."""
        whole, rows = meshes.replicated(self.mesh), meshes.batch_sharding(self.mesh)
        size = self.pipeline.batch_size
        batch = {
            key: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype, sharding=rows)
            for key, value in meshes.numeric(self.pipeline.batch(0)).items()
        }
        sums = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for key, x in zero_metrics().items()}
        step = make_step(self.system, self.optimizer, self.averages, self.config["seed"], self.config["training"]["accumulate"])
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.target)
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, whole))
        with activation_sharding(rows if self.mesh.size > 1 else None):
            return jitted.lower(self.target, sums, batch)

    @property
    def flops(self) -> float | None:
        """Of a step, on each device, as the compiler counts them; None where it does not say."""
        return (self.step.cost_analysis() or {}).get("flops")

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """This host's rows as part of the global batch."""
        return meshes.put_batch(batch, meshes.batch_sharding(self.mesh), self.pipeline.batch_size)

    def zero_metrics(self) -> Any:
        """Fresh metric sums, on every device."""
        return self.put_metrics(zero_metrics())

    def put_metrics(self, sums: Any) -> Any:
        """Metric sums, on every device."""
        return jax.device_put(sums, meshes.replicated(self.mesh))

    def num_params(self) -> int:
        """The number of trained parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.target.params))


def _warn_of_length(system: Any, steps: int) -> None:
    """Levels that grow over another number of steps than training has: a run may be cut short or go on, so no error."""
    planned = getattr(getattr(system, "levels", None), "steps", steps)
    if planned != steps:
        logger.warning(
            "system.levels plans its noise levels over %d steps, but training.steps is %d: set system.levels.steps to it.",
            planned, steps,
        )  # fmt: skip


def prepare(config: Any, devices: Any = None) -> Program:
    """Check a configuration and build its parts; nothing is compiled, trained or written.

    Args:
      config: the recipe; what it does not say is in `config.DEFAULTS`.
      devices: of the mesh; all by default.

    Raises:
      ConfigError, DataError: what is unknown, missing, or does not fit together.
    """
    config = configs.complete(config)
    training = config["training"]
    mesh = meshes.make_mesh(config["mesh"], devices)
    system = systems.from_config(config)
    optimizer, rate = optimizers.from_config(config["optimizer"], training["steps"])
    system.check_sampling(Sampling.from_config(config["sampling"]))
    meshes.check_batch(mesh, config["data"].get("batch_size"), training["accumulate"])
    averages = emas.from_config(training["ema"], config["data"]["batch_size"])
    host, hosts = meshes.host_share(mesh)
    pipeline = data.from_config(config["data"], seed=config["seed"], host=host, hosts=hosts)
    system.check(pipeline)
    teachers.check(system)
    _warn_of_length(system, training["steps"])
    abstract = jax.eval_shape(lambda: init_state(system, optimizer, averages, config["seed"]))
    abstract = dataclasses.replace(abstract, frozen=teachers.shapes(system))
    shardings = meshes.state_shardings(mesh, abstract, config["mesh"]["rules"])
    target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    return Program(config, system, pipeline, mesh, averages, optimizer, rate, target)
