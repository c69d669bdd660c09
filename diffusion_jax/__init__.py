"""diffusion_jax: train, sample and evaluate diffusion models in functional JAX.

The house has floors; each imports only from those below it:

    programs > evaluation > inference > metrics > features > training > systems > interop > sampling > process > models > data
"""

from __future__ import annotations

__version__ = "0.1.0"
