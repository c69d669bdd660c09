"""Images from noise, unconditional or by class."""

from __future__ import annotations

import dataclasses

from diffusion_jax.registry import register
from diffusion_jax.systems.diffusion import Diffusion


@register("system", "generation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(Diffusion):
    """Unconditional or class-conditional generation; the fields are those of `Diffusion`.

    Sources: Ho et al. 2020 (arXiv 2006.11239); guidance and condition dropout: Ho & Salimans 2022 (arXiv 2207.12598).
    """

    name = "generation"
