"""The 8x8 digits of scikit-learn with improved DDPM's objective: a discrete chain, a learned variance, bits per dimension.

    python -m diffusion_jax.train --config=configs/digits.py --workdir=runs/digits
    python -m diffusion_jax.evaluate --workdir=runs/digits

Data: 1,797 handwritten digits inside scikit-learn, 1,617 to train and 180 held out; needs no extra.
Hardware and hours: 2 CPU cores, a few minutes.
Published score: none; the objective is L_hybrid of Nichol & Dhariwal 2021 (arXiv 2102.09672).
Variants: base; tiny trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import split_variant

TINY = ("tiny",)


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of a variant: base or tiny."""
    _, tiny = split_variant(variant, ("base",), "configs/digits.py")
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": {"schedule": {"name": "cosine", "num_steps": 250}, "variance": "learned_range"},
                "network": {
                    "name": "unet",
                    "channels": 32,
                    "multipliers": (1, 2),
                    "num_res_blocks": 2,
                    "attention_resolutions": (4,),
                    "num_heads": 2,
                    "groups": 8,
                },
                "conditioners": {"labels": {"num_classes": 10, "drop": 0.1}},
                "objective": {"vlb_weight": 0.001},
            },
            "data": {
                "source": {"name": "digits"},
                "image_size": 8,
                "channels": 1,
                "batch_size": 64,
            },
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 100, "decay": "cosine", "clip_norm": 1.0},
            "training": {"steps": 2000, "ema": [{"name": "constant", "decay": 0.998}], "checkpoint_every": 500},
            "sampling": {"solver": "ddpm", "grid": "uniform", "steps": 100, "guidance": 1.5},
        }
    )
    if tiny:
        config.system.process.schedule.num_steps = 20
        config.system.network.update(channels=8, groups=4, num_res_blocks=1)
        config.data.batch_size = 8
        config.training.update(steps=4)
        config.sampling.steps = 2
    return config
