"""Tiny systems and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.systems import Generation, SuperResolution

NETWORK = {
    "name": "unet",
    "channels": 8,
    "multipliers": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "groups": 4,
}
PROCESS = {"schedule": "cosine_continuous", "prediction": "v"}


def make_generation(**fields) -> Generation:
    defaults = {"image_size": 8, "channels": 1, "process": PROCESS, "network": NETWORK, "num_classes": 4}
    return Generation(**{**defaults, **fields})


def make_super_resolution(**fields) -> SuperResolution:
    defaults = {
        "image_size": 16,
        "channels": 1,
        "process": PROCESS,
        "network": NETWORK,
        "num_classes": 4,
        "low_res_size": 8,
    }
    return SuperResolution(**{**defaults, **fields})


def randomize(params: Any, scale: float = 0.3, seed: int = 0) -> Any:
    """Parameters without zeros: fresh output layers are zero, and would hide what they are fed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32), params)


def make_batch(size: int = 16, count: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images and labels of 4 classes."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, size, size, 1), np.uint8),
        "label": rng.integers(0, 4, count).astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class FunctionNetwork:
    """A network without parameters: any function (x, noise, cond) -> output."""

    function: Callable[..., jax.Array]
    image_shape: tuple[int, int, int]
    cond_spec: dict[str, Any] = dataclasses.field(default_factory=dict)

    def init(self, key: jax.Array) -> dict:
        return {}

    def apply(self, params: Any, x: jax.Array, noise: jax.Array, cond: Any = None, **_: Any) -> jax.Array:
        return self.function(x, noise, cond)


def gaussian_x0(mean: float, std: float, schedule: Any) -> Callable[..., jax.Array]:
    """E[x0 | x_t] of independent Gaussian pixels, as a network of the noise level 1000 t."""

    def function(x: jax.Array, noise: jax.Array, cond: Any) -> jax.Array:
        alpha, sigma = schedule.alpha_sigma(jnp.asarray(noise / 1000)[:, None, None, None])
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return function
