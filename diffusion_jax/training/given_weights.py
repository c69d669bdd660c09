"""A run that begins with weights from elsewhere instead of random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax import systems
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.systems import Sampling
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training import optimizer as optimizers
from diffusion_jax.training.checkpoints import Checkpointer
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.workdir import finished_steps


def check_empty(workdir: str | Path) -> None:
    """Raise a `CheckpointError` if a directory holds a run: it is never overwritten."""
    if (Path(workdir) / "config.json").exists() or finished_steps(workdir):
        raise CheckpointError(f"{workdir} holds a run already; choose another directory, or remove that one")


def system_of(config: dict[str, Any]) -> Any:
    """The system of a complete configuration, which must have one network; no data need to be there.

    Raises:
      ConfigError: what is unknown or does not fit together, a sampling that the system cannot serve, or a system whose
        parameters are not one network's.
    """
    system = systems.from_config(config)
    system.check_sampling(Sampling.from_config(config["sampling"]))
    network = getattr(system, "network", None)
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    if network is None or jax.tree.structure(shapes) != jax.tree.structure(network.shapes()):
        raise ConfigError(f"system {config['system'].get('name')!r} is no single network that weights could be given to")
    return system


def start_run(config: dict[str, Any], workdir: str | Path, params: Any, ema: Any = None, step: int = 0) -> None:
    """Write a run's directory as training leaves it, with given weights.

    Args:
      config: complete.
      workdir: empty, or new.
      params: of the system's network.
      ema: of every average; `params` if left out.
      step: of the checkpoint: how much warm-up of the averages is over, and how many steps of the data were seen. The
        optimiser starts anew.

    Raises:
      ConfigError: see `system_of`.
      CheckpointError: the directory holds a run, or cannot be written.
    """
    check_empty(workdir)
    system = system_of(config)
    optimizer, _ = optimizers.from_config(config["optimizer"], config["training"]["steps"])
    averages = emas.from_config(config["training"]["ema"])
    params = jax.tree.map(jnp.asarray, params)
    averaged = params if ema is None else jax.tree.map(jnp.asarray, ema)
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        ema={average.label: averaged for average in averages},
        opt_state=optimizer.init(params),
        system_state=system.init_state(),
        skipped=jnp.zeros((), jnp.int32),
    )
    configs.claim(workdir, config)
    checkpointer = Checkpointer(workdir)
    try:
        checkpointer.save(state, step, config)
    finally:
        checkpointer.close()
