"""SR3: super-resolution by iterative refinement, told the noise level itself (Saharia et al. 2021, arXiv 2104.07636).

    python -m diffusion_jax.train --config=configs/sr3.py:64_256 --workdir=runs/sr3 --config.data.source.path=PATH
    python -m diffusion_jax.sample --workdir=runs/sr3 --num=16 --out=runs/sr3/samples

Data: a folder of images, the largest centre crop reduced by area (published: ImageNet for 64_256, faces for the others). The
low-resolution image is made of it by anti-aliased bicubic reduction;
--config.system.conditioners.low_res.blur_prob=0.5 blurs it in training.
Network: DDPM's shape with BigGAN's residual blocks and skips scaled by 1 / sqrt 2. Published counts are rounded, and say too
little of the blocks to be met; parameters here, and published:
  16_128: 574.8M (550M)   64_256: 633.5M (625M)   64_512: 618.2M (625M)   256_1024: 149.7M (150M)
Process: 2,000 steps of beta from 1e-6 to 0.01; a level is drawn uniformly between two neighbouring steps, so any list of betas
samples from one checkpoint: --config.sampling.schedule={...}. The one here, 100 steps, reaches nearly the same last level;
published ones were found by search, and are not published.
Hardware and hours: published batch 256 and 1M steps, on TPUs; `photographs`: 2 CPU cores, a quarter of an hour.
Published score: faces 16_128 PSNR 23.04, SSIM 0.65; ImageNet 64_256 FID 5.2, PSNR 26.4, SSIM 0.762. What was measured here, of
`photographs`, is in docs/systems.md.
Variants: 16_128, 64_256, 64_512, 256_1024; photographs (6 -> 24 crops of bundled photographs, a small network that predicts v,
for experiments/sr_photographs.py); `tiny` after a comma trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import split_variant

TINY = ("photographs,tiny",)

# `linear` scales its ends by 1000 / T: these are 1e-6 and 0.01 of 2,000 steps.
TRAINED = {"name": "linear", "num_steps": 2000, "beta_start": 2e-6, "beta_end": 0.02}
# Square roots of betas evenly spaced: noise of the first steps is below what a byte shows, as the large variance needs.
SAMPLED = {"name": "quadratic", "num_steps": 100, "beta_start": 1e-6, "beta_end": 0.3}

# (low, high) resolution: base channels, multipliers, residual blocks, GroupNorm's groups, dropout
SHAPES = {
    "16_128": (128, (1, 2, 4, 8, 8), 3, 32, 0.2),
    "64_256": (128, (1, 2, 4, 4, 8, 8), 3, 32, 0.0),
    "64_512": (64, (1, 2, 4, 8, 8, 16, 16), 3, 32, 0.0),
    "256_1024": (16, (1, 2, 4, 8, 16, 32, 32, 32), 2, 4, 0.0),
}


def _system(low_res_size: int, network: dict, prediction: str = "eps") -> dict:
    return {
        "process": {
            "schedule": TRAINED,
            "prediction": prediction,
            "variance": "fixed_large",
            "noise_input": {"name": "sqrt_gamma"},
        },
        "network": {
            "name": "unet",
            "resample": "resblock",
            "skip_scale": 2**-0.5,
            "low_res_method": "bicubic",
            **network,
        },
        "conditioners": {"low_res": {"size": low_res_size, "resize": "bicubic", "aug_schedule": None}},
        "objective": {"times": {"name": "piecewise_uniform"}},
    }


def _published(shape: str) -> dict:
    low, high = map(int, shape.split("_"))
    channels, multipliers, blocks, groups, dropout = SHAPES[shape]
    network = {
        "channels": channels,
        "multipliers": multipliers,
        "num_res_blocks": blocks,
        "attention_resolutions": (16,),
        "groups": groups,
        "dropout": dropout,
    }
    return {
        "seed": 0,
        "system": _system(low, network),
        "data": {
            "source": {"name": "folder", "path": "data/images"},
            "image_size": high,
            "channels": 3,
            "resize": "area",
            "crop": "center",
            "batch_size": 256,
        },
        "optimizer": {"name": "adam", "learning_rate": 1e-4, "warmup_steps": 10_000, "decay": "constant"},
        "training": {"steps": 1_000_000, "ema": [{"name": "constant", "decay": 0.9999}]},
        "sampling": {"solver": "ddpm", "steps": 100, "schedule": SAMPLED},
    }


def _photographs() -> dict:
    config = _published("16_128")
    network = {"channels": 24, "multipliers": (1, 2, 2), "num_res_blocks": 1, "attention_resolutions": (), "groups": 8}
    config["system"] = _system(6, network, prediction="v")  # a prediction at t = 1 is then a regression
    config["data"].update(source={"name": "photographs", "size": 24, "num_examples": 50_000}, image_size=24, batch_size=8)
    config["optimizer"].update(learning_rate=2e-3, warmup_steps=100, decay="cosine", clip_norm=1.0)
    config["training"].update(steps=12_000, ema=[{"name": "constant", "decay": 0.995}], checkpoint_every=500, log_every=50)
    return config


def get_config(variant: str = "64_256") -> ConfigDict:
    """The recipe of a variant: a published shape or photographs, and any with `,tiny`."""
    name, tiny = split_variant(variant, ("64_256", *(s for s in SHAPES if s != "64_256"), "photographs"), "configs/sr3.py")
    config = ConfigDict(_photographs() if name == "photographs" or tiny else _published(name))
    if tiny:
        config.system.network.update(channels=8, groups=4, multipliers=(1,))
        config.system.conditioners.low_res.size = 8
        config.data.source.update(size=16, num_examples=64)
        config.data.update(image_size=16, batch_size=8)
        config.training.update(steps=4)
        config.sampling.steps = 2
    return config
