"""A tiny U-Net, parameters and inputs for it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import models

TINY = dict(image_size=8, in_channels=2, channels=8, groups=4, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))


def tiny(**fields):
    return models.unet(**(TINY | fields))


def perturbed(network, seed=0):
    """Parameters away from the initial zeros, so that every path counts."""
    rng = np.random.default_rng(seed)
    draw = lambda path, leaf: np.float32((path[-1].key == "scale") + 0.2 * rng.standard_normal(leaf.shape))  # noqa: E731
    return jax.tree_util.tree_map_with_path(draw, network.shapes())


def inputs(network, batch=2):
    """(x, noise, cond): numbers for floats, ones for labels and masks."""
    rng = np.random.default_rng(9)
    fill = lambda s: (  # noqa: E731
        np.float32(rng.standard_normal(s.shape)) if s.dtype == jnp.float32 else np.ones(s.shape, s.dtype)
    )
    x, _, cond = jax.tree.map(fill, network.example_inputs(batch))
    return x, np.linspace(10, 700, batch, dtype=np.float32), cond


def run(network, params, x, noise, cond=None, **kwargs):
    """One compiled program instead of one for every operation."""
    return jax.jit(functools.partial(network.apply, **kwargs))(params, x, noise, cond)
