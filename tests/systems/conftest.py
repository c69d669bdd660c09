"""Tiny systems and batches."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.systems import Generation, SuperResolution

NETWORK = {"name": "unet", "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (), "groups": 4}
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


def randomize(params, scale: float = 0.3, seed: int = 0):
    """Parameters without zeros: fresh output layers are zero, and would hide what they are fed."""
    import jax

    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32), params)


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    """Eight images of 16x16 and their labels."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 16, 16, 1), np.uint8),
        "label": rng.integers(0, 4, 8).astype(np.int32),
    }
