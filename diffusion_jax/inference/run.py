"""Trained runs, ready to be sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import systems
from diffusion_jax.errors import CheckpointError
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training.checkpoints import restore_weights


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

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
    """Load a run's weights, and nothing else of its checkpoint.

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
