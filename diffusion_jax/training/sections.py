"""The fields of a run's sections `training` and `mesh`: what they may hold, and their defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from diffusion_jax.values import Count, Natural, Range

Seed = Annotated[int, Range(0, 2**32 - 1)]
Kept = Annotated[int, Range(2)]
"""The checkpoint before the last is what a truncated one falls back to."""
Size = Annotated[int, Range(-1)]


@dataclasses.dataclass(frozen=True)
class Training:
    """How long a run trains, and what it writes when.

    Attributes:
      steps: of the whole run.
      ema: averages of the parameters, parts of the kind "ema"; the first is what sampling and evaluation use.
      trainable: patterns of the paths of parameters that are trained; none trains all.
      accumulate: microbatches a step.
      max_skipped: a run stops with an error when so many steps on end were skipped, since loss or gradient was not finite; they
        are counted in whole intervals of `log_every` steps. 0 goes on for ever.
      log_every: steps between rows of metrics.
      checkpoint_every: steps between checkpoints.
      keep_last: how many of the newest checkpoints are kept.
      keep_every: steps whose multiples are kept for ever; 0 keeps the last ones only.
      grid_every: steps between grids of samples; 0 draws none.
      grid_samples: how many a grid shows.
      eval_every: steps between held-out losses; 0 computes none.
      eval_examples: how many held-out examples they are of.
      tensorboard: whether to write event files.
    """

    steps: Count = 100_000
    ema: Sequence[Any] = ({"name": "constant", "decay": 0.9999},)
    trainable: Sequence[str] = ()
    accumulate: Count = 1
    max_skipped: Natural = 100
    log_every: Count = 50
    checkpoint_every: Count = 1000
    keep_last: Kept = 3
    keep_every: Natural = 0
    grid_every: Natural = 0
    grid_samples: Count = 16
    eval_every: Natural = 0
    eval_examples: Count = 256
    tensorboard: bool = True


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices are laid out.

    Attributes:
      data, fsdp, tensor: devices along each axis; one of them may be -1, the devices that are left.
      rules: pairs (pattern of paths of parameters, axes of each dimension); see `mesh.state_shardings`.
    """

    data: Size = -1
    fsdp: Size = 1
    tensor: Size = 1
    rules: Sequence[Any] = ()
