"""Editing images with a model that was trained for nothing but to draw them: functions over a `Denoiser` and a `Solver`.

SDEdit, ILVR and RePaint; interpolation between images is in `sampling.latents`. Each is one scan, forward only, and can be
jitted; image i is a function of (key, `indices[i]`) and what it is given alone.
"""

from __future__ import annotations

from diffusion_jax.sampling.editing.ilvr import ilvr, low_pass
from diffusion_jax.sampling.editing.repaint import repaint, visits
from diffusion_jax.sampling.editing.sdedit import sdedit

__all__ = ["ilvr", "low_pass", "repaint", "sdedit", "visits"]
