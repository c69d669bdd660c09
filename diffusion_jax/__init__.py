"""diffusion_jax: train, sample and evaluate diffusion models in functional JAX.

The names that most programs of one's own begin with are here: `Process`, `models`, `guidance`, `solvers`, `grids` and `Run`.
They are imported when they are first used. What draws samples from a denoiser is `diffusion_jax.sampling.sample`;
`diffusion_jax.sample`, `train`, `evaluate` and their like are the programs.

The packages form layers; each imports only from those after it:

    programs > evaluation > inference > metrics > features > training > systems > interop > sampling > process > models > data
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_jax import models
    from diffusion_jax.inference import Run
    from diffusion_jax.process import Process
    from diffusion_jax.sampling import grids, guidance, solvers

if sys.argv[:1] == ["-m"]:  # a program is starting
    from diffusion_jax import interrupts

    interrupts.watch_start(sys.orig_argv)

__version__ = "0.1.0"
__all__ = ["Process", "Run", "grids", "guidance", "models", "solvers"]

_HOMES = {"Process": "process", "Run": "inference", "grids": "sampling", "guidance": "sampling", "solvers": "sampling"}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`, or a package, when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"diffusion_jax.{_HOMES[name]}"), name)
    if name in ("models", "sampling", "process", "systems", "training", "inference", "evaluation", "data"):
        return importlib.import_module(f"diffusion_jax.{name}")
    raise AttributeError(f"module 'diffusion_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
