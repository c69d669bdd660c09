"""Denoising diffusion implicit models: CelebA at 64 pixels, sampled in few steps without noise.

    python -m diffusion_jax.train --config=configs/ddim.py:celeba64 --workdir=runs/ddim/celeba --config.data.source.path=PATH
    python -m diffusion_jax.sample --workdir=runs/ddim/celeba --num=64 --steps=20 --out=runs/ddim/samples
    python -m diffusion_jax.sample --workdir=runs/ddpm/cifar10 --solver=ddim --grid=quadratic --steps=20 --out=runs/ddim/cifar10

Paper: Song et al. 2021 (arXiv 2010.02502). The objective is DDPM's, at times in antithetic pairs, squares summed over pixels;
any DDPM checkpoint serves, as the last command shows. The paper's grids: "leading" for CelebA and LSUN, "quadratic" for
CIFAR-10. More noise: --config.sampling.solver="{'name': 'ddim', 'eta': 0.5}"; its sigma-hat is
--config.sampling.solver="{'name': 'ddpm', 'variance': 'fixed_large'}". The predicted image is not clipped.
Data: a folder of aligned CelebA faces, cropped beforehand to the 128 pixels around (89, 121).
Hardware and hours: 8 data-centre accelerators, about 2 days.
Published score: FID 17.33, 13.73, 9.17, 6.53 in 10, 20, 50, 100 steps (eta 0), 3.51 in 1,000; sigma-hat 3.26 in 1,000.
Measured here: the parameter count; steps and inversion against closed forms (experiments/ddim_reconstruction.py is for
digits). Learning rate, batch, warm-up, clipping and length are those of DDPM on CIFAR-10
(arXiv 2006.11239), whose code the paper's trainings followed; the published training was not run.
Variants: celeba64; `tiny` after a comma, or alone, trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("celeba64,tiny",)


def get_config(variant: str = "celeba64") -> ConfigDict:
    """The recipe of a variant."""
    _, tiny = split_variant(variant, ("celeba64",), "configs/ddim.py")
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": {
                    "schedule": {"name": "linear", "num_steps": 1000},
                    "prediction": "eps",
                    "variance": "fixed_large",
                    "noise_input": "timestep",
                },
                "network": {"name": "unet_ddpm_celeba64", "dropout": 0.1},
                "objective": {"times": "antithetic", "distance": "l2_sum"},
            },
            "data": {
                "source": {"name": "folder", "path": "images"},
                "image_size": 64,
                "channels": 3,
                "flip": True,
                "batch_size": 128,
                "num_threads": 16,
            },
            "optimizer": {"name": "adam", "learning_rate": 2e-4, "warmup_steps": 5000, "decay": "constant", "clip_norm": 1.0},
            "training": {
                "steps": 800_000,
                "ema": [{"name": "constant", "decay": 0.9999}],
                "checkpoint_every": 5000,
                "grid_every": 20_000,
                "keep_every": 100_000,
            },
            "sampling": {"solver": {"name": "ddim", "eta": 0.0}, "grid": "leading", "steps": 50, "threshold": "none"},
        }
    )
    if tiny:
        config.system.process.schedule.num_steps = 50
        shrink_to_shapes(config, channels=8, groups=4, num_res_blocks=1, multipliers=(1, 2), attention_resolutions=(8,))
        config.training.update(grid_every=4, grid_samples=4)
    return config
