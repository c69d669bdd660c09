"""Training: state, sharded step, loop, checkpoints, metrics. It knows a system, never a network."""

from __future__ import annotations

from diffusion_jax.training.checkpoints import finished_steps
from diffusion_jax.training.config import complete
from diffusion_jax.training.loop import train
from diffusion_jax.training.program import Program, prepare

__all__ = ["Program", "complete", "finished_steps", "prepare", "train"]
