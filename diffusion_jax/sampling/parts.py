"""How the parts of sampling are registered."""

from __future__ import annotations

from diffusion_jax.registry import part

__all__ = ["part"]
