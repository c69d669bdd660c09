"""A run that begins with weights from elsewhere instead of random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax import systems
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.files import only_writer
from diffusion_jax.systems import Sampling
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training import optimizer as optimizers
from diffusion_jax.training.checkpoints import Checkpointer, finished_steps
from diffusion_jax.training.state import Trainable, TrainState, init_state


def check_empty(workdir: str | Path) -> None:
    """Raise a `CheckpointError` if a directory holds a run: it is never overwritten."""
    if (Path(workdir) / "config.json").exists() or finished_steps(workdir):
        raise CheckpointError(f"{workdir} holds a run already; choose another directory, or remove that one")


def system_of(config: dict[str, Any]) -> systems.System:
    """Build the system of a complete configuration, which must have one network; no data need to be there.

    Raises:
      ConfigError: what is unknown or does not fit together, a sampling that the system cannot serve, or a system whose
        parameters are not one network's.
    """
    system = systems.from_config(config)
    if isinstance(system, systems.Samples):
        system.check_sampling(Sampling.from_config(config["sampling"]))
    groups = sorted(jax.eval_shape(system.init, jax.random.key(0)))
    if groups != ["network"]:
        raise ConfigError(
            f"system {config['system'].get('name')!r} is no single network that weights could be given to: it "
            f"has the groups of parameters {', '.join(groups)}"
        )
    return system


def start_run(config: dict[str, Any], workdir: str | Path, params: Any, ema: Any = None, step: int = 0) -> None:
    """Write a run's directory as training leaves it, with given weights.

    Args:
      config: complete.
      workdir: empty, or new.
      params: of the system's one network.
      ema: of every average; `params` if left out.
      step: of the checkpoint: how much warm-up of the averages is over, and how many steps of the data were seen. The
        optimiser starts anew.

    Raises:
      ConfigError: see `system_of`.
      CheckpointError: the directory holds a run, or cannot be written.
    """
    check_empty(workdir)
    system, training = system_of(config), config["training"]
    params = {"network": jax.tree.map(jnp.asarray, params)}
    averaged = params if ema is None else {"network": jax.tree.map(jnp.asarray, ema)}
    optimizer, _ = optimizers.by_group(config["optimizer"], params, training["steps"])
    state = init_state(system, params, optimizer, (), Trainable(tuple(training["trainable"])))
    ema = {average.label: averaged for average in emas.from_config(training["ema"])}
    save_run(config, workdir, dataclasses.replace(state, step=jnp.int32(step), ema=ema), step)


def save_run(config: Mapping[str, Any], workdir: str | Path, state: TrainState, step: int) -> None:
    """Write a run of one checkpoint.

    Raises:
      CheckpointError: the directory holds a run, or cannot be written; DataError: another program is writing there.
    """
    with only_writer(Path(workdir), "writing given weights"):
        check_empty(workdir)
        configs.claim(workdir, config)
        checkpointer = Checkpointer(workdir)
        try:
            checkpointer.save(state, step, configs.recorded(config))
        finally:
            checkpointer.close()
