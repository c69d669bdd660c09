"""Training: state, sharded step, loop, checkpoints, metrics. It knows a system, never a network."""

from __future__ import annotations

from diffusion_jax.training.checkpoints import finished_steps
from diffusion_jax.training.config import complete
from diffusion_jax.training.loop import Program, Run, load_run, prepare, train

__all__ = ["Program", "Run", "complete", "finished_steps", "load_run", "prepare", "train"]
