"""A folder of your own images: a 64x64 base, and 64 -> 256 super-resolution, on one GPU, many GPUs or a TPU slice.

    python -m diffusion_jax.train --config=configs/folder.py:base --workdir=runs/mine/base --config.data.source.path=PATH
    python -m diffusion_jax.train --config=configs/folder.py:sr --workdir=runs/mine/sr --config.data.source.path=PATH
    python -m diffusion_jax.sample --workdir=runs/mine/base,runs/mine/sr --num=64 --out=runs/mine/samples

Data: png, jpeg or webp, in any sub-folders. Unconditional as it stands; where the first sub-folders are classes, add
--config.system.conditioners.labels.num_classes=N, and guidance with --config.sampling.guidance=2.
Hardware and hours: 8 data-centre accelerators, a day or two a stage for some 100,000 images; on fewer, lower
data.batch_size or raise training.accumulate. --dry_run tells whether it fits.
Published score: none; the networks follow ADM (arXiv 2105.05233), the cascade CDM (arXiv 2106.15282).
Variants: base, sr; `tiny` after a comma (`sr,tiny`) trains for seconds; `tiny` alone is the tiny base.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import split_variant

TINY = ("base,tiny", "sr,tiny")


def _config(image_size: int, batch_size: int, network: dict, conditioners: dict, sampling: dict) -> dict:
    return {
        "seed": 0,
        "system": {
            "process": {"schedule": {"name": "cosine_continuous"}, "prediction": "v"},
            "network": {
                "name": "unet",
                "resample": "resblock",
                "head_channels": 64,
                "dtype": "bfloat16",
                "remat": True,
                **network,
            },
            "conditioners": conditioners,
            "objective": {"weighting": {"name": "min_snr", "gamma": 5.0}, "times": "low_discrepancy"},
        },
        "data": {
            "source": {"name": "folder", "path": "images"},
            "image_size": image_size,
            "channels": 3,
            "resize": "adm",
            "crop": "center",
            "flip": True,
            "batch_size": batch_size,
            "num_threads": 16,
        },
        "optimizer": {"name": "adamw", "learning_rate": 1e-4, "warmup_steps": 5000, "decay": "constant", "clip_norm": 1.0},
        "training": {
            "steps": 400_000,
            "ema": [{"name": "constant", "decay": 0.9999}],
            "checkpoint_every": 5000,
            "grid_every": 5000,
            "keep_every": 100_000,
        },
        "sampling": {"solver": "dpmpp_2m", "steps": 30, **sampling},
    }


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of a variant: base, sr, and either with `,tiny`."""
    stage, tiny = split_variant(variant, ("base", "sr"), "configs/folder.py")
    if stage == "base":
        network = {"channels": 192, "multipliers": (1, 2, 3, 4), "num_res_blocks": 3, "attention_resolutions": (32, 16, 8)}
        config = _config(64, 256, network, {}, {})
    else:
        network = {"channels": 128, "multipliers": (1, 2, 4, 4), "num_res_blocks": 2, "attention_resolutions": (32,)}
        config = _config(256, 64, network, {"low_res": {"size": 64, "blur_prob": 0.5}}, {"aug_level": 0.1})
    config = ConfigDict(config)
    if tiny:
        config.system.network.update(channels=8, groups=4, head_channels=8, num_res_blocks=1, multipliers=(1, 2))
        config.system.network.attention_resolutions = ()
        config.data.update(image_size=16, batch_size=8)
        if stage == "sr":
            config.system.conditioners.low_res.size = 8
        config.training.update(steps=4, grid_every=4, grid_samples=4)
        config.sampling.steps = 2
    return config
