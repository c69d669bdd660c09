"""What is done to an image before it is to be restored: numpy in, numpy out, every draw from the generator that is given."""

from __future__ import annotations

from diffusion_jax.data.degradations.bsr import Bsr, bsr_light
from diffusion_jax.data.degradations.operators import (
    blur,
    check_reducible,
    compress,
    down_up,
    draw_quality,
    gaussian_kernel,
    gaussian_noise,
    resize,
)
from diffusion_jax.data.degradations.tasks import TASKS, Colorize, Inpaint, Jpeg, Mixture, Uncrop, grey, with_mask

__all__ = [
    "TASKS",
    "Bsr",
    "Colorize",
    "Inpaint",
    "Jpeg",
    "Mixture",
    "Uncrop",
    "blur",
    "bsr_light",
    "check_reducible",
    "compress",
    "down_up",
    "draw_quality",
    "gaussian_kernel",
    "gaussian_noise",
    "grey",
    "resize",
    "with_mask",
]
