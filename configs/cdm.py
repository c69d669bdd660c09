"""CDM on ImageNet: cascades 32 -> 64, 32 -> 64 -> 128 and 32 -> 64 -> 256, each stage by class and trained by itself.

    python -m diffusion_jax.train --config=configs/cdm.py:base32 --workdir=runs/cdm/32 --config.data.source.path=IMAGENET/train
    python -m diffusion_jax.train --config=configs/cdm.py:sr64 --workdir=runs/cdm/64 --config.data.source.path=IMAGENET/train
    python -m diffusion_jax.train --config=configs/cdm.py:sr256 --workdir=runs/cdm/256 --config.data.source.path=IMAGENET/train
    python -m diffusion_jax.evaluate --workdir=runs/cdm/32,runs/cdm/64 --aug_level=0/0,0/0.025,0/0.05,0/0.1

The last command sweeps the level of conditioning augmentation; the base's images are drawn once for all levels. With
--truncated=true the base's chain is stopped at the level instead.

Data: a folder of images with a sub-folder for each class.
Hardware and hours: 400,000 to 700,000 iterations a stage, for TPUs. Nothing of this size was run here.
Published score: FID against the training set 1.48 (32 -> 64), 3.52 (-> 128), 4.88 (-> 256) (arXiv 2106.15282, table 1).
Measured here: on tiny runs, that a sweep draws the base once and what the whole cascade would draw.
Uncertain: widths, blocks, attention, batch sizes, learning rates and iterations below are from memory of the paper's
appendix, and no count was published to check them against; what is certain is the method: class-conditional stages, blur
for 128 and 256, Gaussian augmentation with a level of its own below, truncated and non-truncated sampling.
Variants: base32, sr64, sr128, sr256; each with `,tiny`, on made images.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("base32,tiny", "sr64,tiny", "sr128,tiny")

# size, low-resolution size, width, multipliers, blocks, attention, heads, dropout, batch, iterations
_STAGES = {
    "base32": (32, None, 256, (1, 2, 3, 4), 6, (8, 16), 4, 0.1, 2048, 700_000),
    "sr64": (64, 32, 256, (1, 2, 3, 4), 5, (8, 16), 4, 0.1, 2048, 400_000),
    "sr128": (128, 64, 128, (1, 2, 4, 8, 8), 3, (16,), 1, 0.0, 1024, 500_000),
    "sr256": (256, 64, 128, (1, 2, 4, 4, 8, 8), 3, (16,), 1, 0.0, 1024, 500_000),
}


def _process(size: int) -> dict:
    if size <= 64:
        return {"schedule": {"name": "cosine", "num_steps": 4000}, "prediction": "eps", "variance": "learned_range"}
    # The ends are those of 1,000 steps, which T halves: betas from 1e-6 to 0.01, as SR3 has them.
    schedule = {"name": "linear", "num_steps": 2000, "beta_start": 2e-6, "beta_end": 2e-2}
    return {"schedule": schedule, "prediction": "eps", "variance": "fixed_large", "noise_input": "gamma"}


def get_config(variant: str = "base32") -> ConfigDict:
    """The recipe of a variant; see the file's header."""
    chosen, tiny = split_variant(variant, tuple(_STAGES), "configs/cdm.py")
    size, low, width, multipliers, blocks, attention, heads, dropout, batch, iterations = _STAGES[chosen]
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": _process(size),
                "network": {
                    "name": "unet",
                    "channels": width,
                    "multipliers": multipliers,
                    "num_res_blocks": blocks,
                    "attention_resolutions": attention,
                    "num_heads": heads,
                    "resample": "resblock",
                    "dropout": dropout,
                    "dtype": "bfloat16",
                },
                "conditioners": {"labels": {"num_classes": 1000, "drop": 0.0}},  # no guidance of any kind
                "objective": {"vlb_weight": 0.001 if size <= 64 else 0.0},
            },
            "data": {
                "source": {"name": "folder", "path": "PATH/TO/train", "test_fraction": 0.02},
                "image_size": size,
                "channels": 3,
                "resize": "area",
                "flip": True,
                "batch_size": batch,
            },
            "optimizer": {"name": "adam", "learning_rate": 1e-4, "clip_norm": 1.0},
            "training": {"steps": iterations, "ema": [{"name": "constant", "decay": 0.9999}], "checkpoint_every": 10_000},
            "sampling": {"solver": "ddpm", "grid": "uniform", "steps": 4000 if size <= 64 else 100},
        }
    )
    if low:
        low_res = {"size": low, "resize": "area"}
        if size == 64:
            # The level's process is the base's own; at sampling it is chosen by a sweep.
            low_res["aug_schedule"] = {"name": "cosine", "num_steps": 4000}
            config.sampling.update(aug_level=0.05, quantize=True)
        else:
            low_res.update(aug_schedule=None, blur_prob=0.5, blur_sigma=(0.4, 0.6))
            config.sampling.update(quantize=True)
        config.system.conditioners.low_res = low_res
    if tiny:
        shrink = {32: 8, 64: 16, 128: 32, 256: 64}
        network = {"channels": 8, "groups": 4, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": ()}
        shrink_to_shapes(config, shrink[size], shrink.get(low), dtype="float32", **network)
        config.system.process.schedule.num_steps = 40
    return config
