"""Coloured shapes drawn on the fly, 32x32 RGB, by flow matching: data without end, for ablations that need no files.

    python -m diffusion_jax.train --config=configs/shapes.py --workdir=runs/shapes
    python -m diffusion_jax.train --config=configs/shapes.py:wide --workdir=runs/wide

Data: circles, squares, triangles, ... on plain grounds, drawn from the example's index.
Hardware and hours: one GPU, minutes; 2 CPU cores, about an hour, `wide` half of that.
Published score: none.
Variants: base; wide (rectangles of 16x24 pixels); tiny, or tiny after a comma (`wide,tiny`), trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.data.sources.shapes import CLASSES
from diffusion_jax.training.recipes import split_variant

TINY = ("tiny", "wide,tiny")


def get_config(variant: str = "base") -> ConfigDict:
    """Return the recipe of a variant: base or wide, and either with `,tiny`."""
    name, tiny = split_variant(variant, ("base", "wide"), "configs/shapes.py")
    size = (16, 24) if name == "wide" else 32
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": {"schedule": "straight_line", "prediction": "velocity"},
                "network": {
                    "name": "unet",
                    "channels": 64,
                    "multipliers": (1, 2, 2),
                    "num_res_blocks": 2,
                    "attention_resolutions": (8,),
                    "head_channels": 32,
                },
                "conditioners": {"labels": {"num_classes": len(CLASSES), "drop": 0.1}},
                "objective": {"times": "logit_normal"},
            },
            "data": {
                "source": {"name": "shapes", "size": size, "num_examples": 100_000},
                "image_size": size,
                "channels": 3,
                "batch_size": 128,
            },
            "optimizer": {"name": "adamw", "learning_rate": 5e-4, "warmup_steps": 500, "decay": "constant", "clip_norm": 1.0},
            "training": {"steps": 20_000, "ema": [{"name": "constant", "decay": 0.999}], "grid_every": 1000},
            "sampling": {"solver": "heun", "steps": 20, "guidance": 2.0},
        }
    )
    if tiny:
        config.system.network.update(channels=8, groups=4, num_res_blocks=1, head_channels=8)
        config.data.source.num_examples = 64
        config.data.batch_size = 8
        config.training.update(steps=4, grid_every=4, grid_samples=4)
        config.sampling.steps = 2
    return config
