"""Palette: colorization, inpainting, uncropping and JPEG restoration of 256x256 images by one model (arXiv 2111.05826).

    python -m diffusion_jax.train --config=configs/palette.py --workdir=runs/palette --config.data.source.path=PATH
    python -m diffusion_jax.sample --workdir=runs/palette --task=colorize --num=16 --out=runs/palette/colorized
    python -m diffusion_jax.sample --workdir=runs/palette --images=MINE --masks=HOLES --out=runs/palette/filled

Data: a folder of images; the largest square crop, at a random place, at 256 pixels. Published: ImageNet and Places2. One task
alone is --config.data.degradation=colorize (inpaint, uncrop, jpeg); L1 is --config.system.objective.distance=l1.
Network: ADM's for 256 pixels without classes, 6 channels in, 3 out: 552,814,083 parameters (published: 552M).
Process: 2,000 steps of beta from 1e-6 to 0.01, told the level itself, so that any schedule samples: 1,000 steps from 1e-4 to
0.09, as published. Nothing published says the scale of the level's embedding, or the optimiser's betas.
Hardware and hours: published batch 1,024 and 1M steps, on a TPU pod; `photographs`: 2 CPU cores, a quarter of an hour.
Published score: FID on ImageNet's ctest10k, multi-task: inpainting 6.8, colorization 3.7, JPEG of quality 5 7.0; alone 6.6 for
inpainting the centre, 5.8 for uncropping. What was measured here, of `photographs`, is in docs/systems.md.
Variants: base; photographs (24x24 crops of bundled photographs, a small network that predicts v, for
experiments/palette_photographs.py); `tiny` after a comma trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import small_unet, split_variant

TINY = ("photographs,tiny",)

# `linear` scales its ends by 1000 / T: these are 1e-6 and 0.01 of 2,000 steps.
TRAINED = {"name": "linear", "num_steps": 2000, "beta_start": 2e-6, "beta_end": 0.02}
SAMPLED = {"name": "linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.09}


def _base() -> dict:
    return {
        "seed": 0,
        "system": {
            "process": {
                "schedule": TRAINED,
                "prediction": "eps",
                "variance": "fixed_large",
                "noise_input": {"name": "sqrt_gamma"},
            },
            "network": {"name": "unet_palette256"},
            "conditioners": {"image": {}},
            "objective": {"times": {"name": "piecewise_uniform"}, "distance": "l2"},
        },
        "data": {
            "source": {"name": "folder", "path": "data/images"},
            "image_size": 256,
            "channels": 3,
            "resize": "area",
            "crop": "random",
            "batch_size": 1024,
            "degradation": {"name": "mixture"},
        },
        "optimizer": {"name": "adam", "learning_rate": 1e-4, "warmup_steps": 10_000, "decay": "constant"},
        "training": {"steps": 1_000_000, "ema": [{"name": "constant", "decay": 0.9999}]},
        "sampling": {"solver": "ddpm", "steps": 1000, "schedule": SAMPLED},
    }


def _photographs() -> dict:
    config = _base()
    config["system"]["process"]["prediction"] = "v"  # a prediction at t = 1 is then a regression
    config["system"]["network"] = small_unet(24, (1, 2, 2), groups=8)
    config["data"].update(source={"name": "photographs", "size": 24, "num_examples": 50_000}, image_size=24, batch_size=8)
    config["optimizer"].update(learning_rate=2e-3, warmup_steps=100, decay="cosine", clip_norm=1.0)
    config["training"].update(steps=16_000, ema=[{"name": "constant", "decay": 0.995}], checkpoint_every=500, log_every=50)
    schedule = {"name": "quadratic", "num_steps": 50, "beta_start": 1e-6, "beta_end": 0.55}
    config["sampling"] = {"solver": "ddpm", "steps": 50, "schedule": schedule}
    return config


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of a variant: base or photographs, and either with `,tiny`."""
    variants = {"base": _base, "photographs": _photographs}
    name, tiny = split_variant(variant, tuple(variants), "configs/palette.py")
    config = ConfigDict(variants["photographs" if tiny else name]())
    if tiny:
        config.system.network.update(channels=8, groups=4, multipliers=(1,))
        config.data.source.update(size=16, num_examples=64)
        config.data.update(image_size=16, batch_size=8)
        config.training.update(steps=4)
        config.sampling.steps = 2
        config.sampling.schedule.num_steps = 4
    return config
