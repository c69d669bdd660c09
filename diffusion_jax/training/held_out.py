"""The held-out loss along the way."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.errors import ConfigError
from diffusion_jax.models import activation_sharding
from diffusion_jax.rng import named
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.program import Program


class HeldOut:
    """The loss of some weights on a fixed part of the held-out data, with fixed times and noise.

    Raises:
      ConfigError: fewer held-out examples than devices.
    """

    def __init__(self, program: Program) -> None:
        config, system = program.config, program.system
        pipeline = data.from_config(config["data"], seed=config["seed"], split="test")
        limit = min(config["training"]["eval_examples"], len(pipeline))
        shards = meshes.batch_shards(program.mesh)
        size = min(pipeline.batch_size, limit) // shards * shards
        if not size:
            raise ConfigError(
                f"training.eval_every: {limit} held-out examples for {shards} devices; "
                "raise training.eval_examples, or set eval_every to 0"
            )
        self._sharding = meshes.batch_sharding(program.mesh)
        # The same examples on every process; those that fill no batch are left out.
        self._batches = list(pipeline.one_pass(size, limit // size * size))
        key = named(jax.random.key(config["seed"]), "held out")

        def loss(params: Any, state: Any, batch: Any, number: Any, frozen: Any) -> jax.Array:
            more = {"frozen": frozen} if frozen else {}
            return system.loss(params, state, batch, named(key, number), train=False, **more)[0]

        self._loss = jax.jit(loss, out_shardings=meshes.replicated(program.mesh))

    def __call__(self, params: Any, system_state: Any, frozen: Any = None) -> float:
        """The mean loss; all processes must call this."""
        with activation_sharding(self._sharding if self._sharding.mesh.size > 1 else None):
            losses = [
                self._loss(params, system_state, jax.device_put(meshes.numeric(batch), self._sharding), number, frozen)
                for number, batch in enumerate(self._batches)
            ]
        return float(np.mean(jax.device_get(losses)))
