"""diffusion_jax: train, sample and evaluate diffusion models in functional JAX.

The house has floors; each imports only from those below it:

    programs > evaluation > inference > metrics > features > training > systems > interop > sampling > process > models > data
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"]:  # a program is starting
    from diffusion_jax import interrupts

    interrupts.watch_start(sys.orig_argv)

__version__ = "0.1.0"
