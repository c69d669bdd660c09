"""Denoising diffusion probabilistic models: CIFAR-10, and 256-pixel faces, bedrooms, churches and cats.

    python -m diffusion_jax.train --config=configs/ddpm.py:cifar10 --workdir=runs/ddpm/cifar10
    python -m diffusion_jax.train --config=configs/ddpm.py:bedroom256 --workdir=runs/ddpm/bedroom --config.data.source.path=PATH
    python -m diffusion_jax.sample --workdir=runs/ddpm/cifar10 --num=64 --out=runs/ddpm/samples

Paper: Ho et al. 2020 (arXiv 2006.11239): predicted noise, L_simple, 1,000 linear betas. Its other objectives are overrides:
--config.system.process.prediction=mu|x0, --config.system.process.variance=fixed_small|fixed_large, and for the bound
--config.system.objective.weighting=vlb, with variance=learned_diagonal if it is to be learned.
Data: CIFAR-10 by TensorFlow Datasets (extra `tfds`, prepared once as array_record); the others are folders of images.
Hardware and hours: CIFAR-10 8 accelerators of the V100's kind for some 2 days; 256 pixels, 8 of the A100's kind, a week or two.
Published score: FID 3.17 on CIFAR-10, bits/dim <= 3.75; LSUN bedroom 6.36 (large 4.90), church 7.89, cat 19.75.
Measured here: parameter counts and the objective's closed forms; none of the published trainings was run.
Variants: cifar10, celebahq256, bedroom256, bedroom256_large, church256, cat256; `tiny` after a comma trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("cifar10,tiny",)

# Of 256 pixels: steps, whether images are flipped, channels of the network.
_LARGE = {
    "celebahq256": (500_000, True, 128),
    "bedroom256": (2_400_000, False, 128),
    "bedroom256_large": (1_150_000, False, 192),
    "church256": (1_200_000, True, 128),
    "cat256": (1_800_000, True, 128),
}


def _config(network: dict, variance: str, data: dict, rate: float, steps: int) -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": {
                    "schedule": {"name": "linear", "num_steps": 1000},
                    "prediction": "eps",
                    "variance": variance,
                    "noise_input": "timestep",
                },
                "network": network,
                "objective": {"weighting": "simple"},
            },
            "data": {"channels": 3, "num_threads": 16, **data},
            "optimizer": {"name": "adam", "learning_rate": rate, "warmup_steps": 5000, "decay": "constant", "clip_norm": 1.0},
            "training": {
                "steps": steps,
                "ema": [{"name": "constant", "decay": 0.9999}],
                "checkpoint_every": 5000,
                "grid_every": 20_000,
                "keep_every": 100_000,
            },
            "sampling": {"solver": "ddpm", "grid": "uniform", "steps": 1000},
        }
    )


def get_config(variant: str = "cifar10") -> ConfigDict:
    """The recipe of a variant."""
    name, tiny = split_variant(variant, ("cifar10", *_LARGE), "configs/ddpm.py")
    if name == "cifar10":
        data = {"source": {"name": "tfds", "dataset": "cifar10"}, "image_size": 32, "flip": True, "batch_size": 128}
        config = _config({"name": "unet_ddpm_cifar10", "dropout": 0.1}, "fixed_large", data, 2e-4, 800_000)
    else:
        steps, flip, channels = _LARGE[name]
        data = {"source": {"name": "folder", "path": "images"}, "image_size": 256, "flip": flip, "batch_size": 64}
        config = _config({"name": "unet_ddpm256", "channels": channels, "dropout": 0.0}, "fixed_small", data, 2e-5, steps)
    if tiny:
        config.system.process.schedule.num_steps = 50
        shrink_to_shapes(config, channels=8, groups=4, num_res_blocks=1, multipliers=(1, 2), attention_resolutions=(8,))
        config.training.update(grid_every=4, grid_samples=4)
    return config
