"""Improved DDPM: learned variances, the cosine schedule, L_hybrid and importance-sampled L_vlb.

    python -m diffusion_jax.train --config=configs/iddpm.py:cifar10 --workdir=runs/iddpm/cifar10
    python -m diffusion_jax.train --config=configs/iddpm.py:imagenet64_cond --workdir=runs/i64 --config.data.source.path=PATH
    python -m diffusion_jax.evaluate --workdir=runs/iddpm/cifar10 --metrics=vlb --bits_per_dim=1000 --bits_per_dim_terms

Paper: Nichol & Dhariwal 2021 (arXiv 2102.09672). `_vlb` variants train the bound alone, at times drawn by their losses.
Data: CIFAR-10 by TensorFlow Datasets (extra `tfds`, prepared once as array_record); the others are folders of images, with
a sub-folder for each class where the variant is conditional. Images are not flipped.
Hardware and hours: CIFAR-10 4 data-centre accelerators for 3 days; the others 16 to 64 for one to two weeks.
Published score: CIFAR-10 L_hybrid 3.17 bits/dim and FID 3.19, L_vlb 2.94 and 11.47; ImageNet-64 L_hybrid 3.57 and 19.2, L_vlb
3.53 and 40.1; class-conditional ImageNet-64 FID 2.92 (250 steps); 64 -> 256 in two stages FID 12.3; LSUN bedroom 4.24.
Measured here: parameter counts, the bound on Gaussian data against its closed form, gradients of L_hybrid; none of the
published trainings was run. configs/digits.py is the same objective at a size for 2 CPU cores.
Variants: cifar10, cifar10_vlb, imagenet64, imagenet64_vlb, imagenet64_cond, upsampler256 (64 -> 256), bedroom256,
bedroom256_slow (a fifth of the rate for twice the steps); `tiny` after a comma trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("cifar10_vlb,tiny", "upsampler256,tiny")

# Network, chain, batch, learning rate, steps.
_RUNS = {
    "cifar10": ({"name": "unet_iddpm_cifar10", "dropout": 0.3}, ("cosine", 4000), 128, 1e-4, 500_000),
    "imagenet64": ({"name": "unet_iddpm64"}, ("cosine", 4000), 128, 1e-4, 1_500_000),
    "imagenet64_cond": ({"name": "unet_iddpm64", "channels": 192}, ("cosine", 4000), 2048, 3e-4, 250_000),
    "upsampler256": ({"name": "unet_iddpm_upsampler256"}, ("linear", 4000), 256, 3e-4, 500_000),
    "bedroom256": ({"name": "unet_iddpm256"}, ("linear", 1000), 128, 1e-4, 1_200_000),
    "bedroom256_slow": ({"name": "unet_iddpm256"}, ("linear", 1000), 128, 2e-5, 2_400_000),
}
_CONDITIONAL = ("imagenet64_cond", "upsampler256")
# Only these told the network its step on the scale of 1,000, and weighed the bound by 0.001 whatever the chain's length.
_RESCALED = ("cifar10", "imagenet64")


def _system(name: str, bound_only: bool) -> dict:
    network, (schedule, chain), *_ = _RUNS[name]
    system = {
        "process": {
            "schedule": {"name": schedule, "num_steps": chain},
            "prediction": "eps",
            "variance": "learned_range",
            "decoder": "tanh",
            "noise_input": "rescaled_timestep" if name in _RESCALED else "timestep",
        },
        "network": network,
        "conditioners": {"labels": {"num_classes": 1000, "drop": 0.0}} if name in _CONDITIONAL else {},
        # One term of the bound beside each squared error: 1/T of the whole, or 0.001 where it was rescaled.
        "objective": {"vlb_weight": 0.001 if name in _RESCALED else 1 / chain},
    }
    if bound_only:
        system["objective"] = {"weighting": "vlb", "times": "importance"}
    if name == "upsampler256":
        system["conditioners"]["low_res"] = {"size": 64, "resize": "area", "aug_schedule": None}
    return system


def get_config(variant: str = "cifar10") -> ConfigDict:
    """The recipe of a variant."""
    variants = ("cifar10", "cifar10_vlb", "imagenet64", "imagenet64_vlb", *list(_RUNS)[2:])
    chosen, tiny = split_variant(variant, variants, "configs/iddpm.py")
    name = chosen.removesuffix("_vlb")
    _, _, batch, rate, steps = _RUNS[name]
    source = {"name": "tfds", "dataset": "cifar10"} if name == "cifar10" else {"name": "folder", "path": "images"}
    size = {"cifar10": 32, "imagenet64": 64, "imagenet64_cond": 64}.get(name, 256)
    config = ConfigDict(
        {
            "seed": 0,
            "system": _system(name, bound_only=name != chosen),
            "data": {
                "source": source,
                "image_size": size,
                "channels": 3,
                "resize": "adm",
                "crop": "center",
                "flip": False,
                "batch_size": batch,
                "num_threads": 16,
            },
            "optimizer": {"name": "adamw", "learning_rate": rate, "weight_decay": 0.0, "decay": "constant", "clip_norm": 0.0},
            "training": {
                "steps": steps,
                "ema": [{"name": "constant", "decay": 0.9999}],
                "checkpoint_every": 5000,
                "keep_every": 100_000,
            },
            "sampling": {"solver": "ddpm", "grid": "uniform", "steps": 250},
        }
    )
    if tiny:
        config.system.process.schedule.num_steps = 50
        network = {"channels": 8, "groups": 4, "num_res_blocks": 1, "num_heads": 2, "multipliers": (1, 2)}
        shrink_to_shapes(config, low_res_size=8, attention_resolutions=(8,), **network)
    return config
