"""Classifier-free guidance on ImageNet: one network with and without labels, in continuous time.

    python -m diffusion_jax.train --config=configs/cfg.py:64 --workdir=runs/cfg/64 --config.data.source.path=IMAGENET/train
    python -m diffusion_jax.evaluate --workdir=runs/cfg/64 --guidance_weight=0,0.1,0.3,1,4

The paper writes (1 + w) cond - w null: that is `guidance_weight`; w = 0 is no guidance. Elsewhere the scale is s = 1 + w,
which is `guidance`.

Data: a folder of images with a sub-folder for each class.
Hardware and hours: the paper's 400,000 iterations (64) and 2.7 million (128), for TPUs. Nothing of this size was run here.
Published score: FID and Inception Score (arXiv 2207.12598, tables 1 and 2): 64 at w = 0.1 1.55 and 66.1, at w = 4 26.22 and
260; 128 with 256 steps at w = 0.3 2.43 and 158, at w = 2 15.9 and 377.
Measured here: the small model of experiments/classifier_guidance.py. Batch sizes and learning rates are ADM's: the paper
takes its networks and settings from there.
Variants: 64, 128; each with `,tiny`, on made images.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("64,tiny",)

# batch, learning rate, iterations, dropout, v of the ancestral variance, steps
_SIZES = {"64": (2048, 3e-4, 400_000, 0.1, 0.3, 1000), "128": (256, 1e-4, 2_700_000, 0.0, 0.2, 256)}


def get_config(variant: str = "64") -> ConfigDict:
    """The recipe of a variant: 64 or 128, and either with `,tiny`."""
    chosen, tiny = split_variant(variant, tuple(_SIZES), "configs/cfg.py")
    batch, rate, iterations, dropout, interpolation, steps = _SIZES[chosen]
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                # log-SNR -2 ln tan(a u + b), u uniform, cut at 20 on both sides
                "process": {"schedule": {"name": "cosine_continuous", "limit": 20.0}, "prediction": "eps"},
                "network": {"name": f"unet_adm{chosen}", "out_channels": 3, "dropout": dropout, "dtype": "bfloat16"},
                "conditioners": {"labels": {"num_classes": 1000, "drop": 0.1}},  # 0.1 and 0.2 were best, 0.5 worse
                "objective": {"times": {"name": "uniform"}},
            },
            "data": {
                "source": {"name": "folder", "path": "PATH/TO/train", "test_fraction": 0.02},
                "image_size": int(chosen),
                "channels": 3,
                "resize": "adm",
                "flip": True,
                "batch_size": batch,
            },
            "optimizer": {"name": "adamw", "learning_rate": rate, "weight_decay": 0.0, "clip_norm": 0.0},
            "training": {"steps": iterations, "ema": [{"name": "constant", "decay": 0.9999}], "checkpoint_every": 10_000},
            # v interpolates the logarithms of the posterior's variance and the forward one's
            "sampling": {
                "solver": {"name": "ddpm", "variance": interpolation},
                "grid": "uniform",
                "steps": steps,
                "guidance_weight": 0.1 if chosen == "64" else 0.3,
            },
        }
    )
    if tiny:
        network = {"channels": 8, "groups": 4, "multipliers": (1, 2), "num_res_blocks": 1}
        shrink_to_shapes(config, head_channels=8, num_heads=1, dtype="float32", **network)
    return config
