"""ADM on ImageNet and LSUN: generators, upsamplers, and the noisy classifiers that guide them.

    python -m diffusion_jax.train --config=configs/adm.py:64 --workdir=runs/adm/64 --config.data.source.path=IMAGENET/train
    python -m diffusion_jax.train --config=configs/adm.py:classifier64 --workdir=runs/adm/classifier64 ...
    python -m diffusion_jax.sample --workdir=runs/adm/64 --classifier=runs/adm/classifier64 --classifier_scale=1.0 --out=...
    python -m diffusion_jax.sample --workdir=runs/adm/64,runs/adm/up256 --classifier=runs/adm/classifier64 --out=...

Data: a folder of images with a sub-folder for each class, fitted as the paper's code does (halving, bicubic, crop).
Hardware and hours: the paper's iterations at its batch sizes, on V100: 64 took 160 V100-days, 128 521, 256 914, 512 1914
(appendix A of the paper). Nothing of this size was run here; `tiny` was.
Published score: FID with 250 steps (arXiv 2105.05233, tables 4 and 5): 64 2.07; 128 5.91, guided 2.97; 256 10.94, guided
4.59; 512 23.24, guided 7.72; 64 -> 256 upsampled 7.49, guided 3.94; 128 -> 512 9.96, guided 3.85; LSUN bedroom 1.90.
Published scales of guidance: 1.0 (64), 0.5 (128), 1.0 (256), 4.0 (512), 10 (256, unconditional); for DDIM with 25 steps
1.25 (128), 2.5 (256), 9.0 (512).
Measured here: parameter counts; the small models of experiments/classifier_guidance.py.
Variants: 64, 128, 256, 512, uncond256, lsun256, up256 (64 -> 256), up512 (128 -> 512), classifier64, classifier128,
classifier256, classifier512; each with `,tiny`, on made images.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("64,tiny", "up256,tiny", "classifier64,tiny")

# size, low-resolution size, batch, learning rate, iterations, dropout
_GENERATORS = {
    "64": (64, None, 2048, 3e-4, 540_000, 0.1),
    "128": (128, None, 256, 1e-4, 4_360_000, 0.0),
    "256": (256, None, 256, 1e-4, 1_980_000, 0.0),
    "512": (512, None, 256, 1e-4, 1_940_000, 0.0),
    "uncond256": (256, None, 256, 1e-4, 1_980_000, 0.0),
    "lsun256": (256, None, 256, 1e-4, 500_000, 0.1),
    "up256": (256, 64, 256, 1e-4, 500_000, 0.0),
    "up512": (512, 128, 256, 1e-4, 1_050_000, 0.0),
}
# size, batch, learning rate, iterations, weight decay
_CLASSIFIERS = {
    "classifier64": (64, 1024, 6e-4, 300_000, 0.2),
    "classifier128": (128, 256, 3e-4, 300_000, 0.05),
    "classifier256": (256, 256, 3e-4, 500_000, 0.05),
    "classifier512": (512, 256, 3e-4, 500_000, 0.05),
}
_TINY_NETWORK = {"channels": 8, "groups": 4, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)}


def _data(size: int, batch: int, **fields) -> dict:
    source = {"name": "folder", "path": "PATH/TO/train", "test_fraction": 0.02}
    return {"source": source, "image_size": size, "channels": 3, "resize": "adm", "flip": True, "batch_size": batch, **fields}


def _schedule(size: int) -> dict:
    return {"name": "cosine" if size == 64 else "linear", "num_steps": 1000}


def _generator(variant: str) -> dict:
    size, low, batch, rate, steps, dropout = _GENERATORS[variant]
    system = {
        "process": {"schedule": _schedule(size), "prediction": "eps", "variance": "learned_range", "decoder": "tanh"},
        "network": {"name": f"unet_adm_upsampler{size}" if low else f"unet_adm{size}", "dropout": dropout, "dtype": "bfloat16"},
        # Guidance is the classifier's.
        "conditioners": {} if variant in ("uncond256", "lsun256") else {"labels": {"num_classes": 1000, "drop": 0.0}},
        "objective": {"vlb_weight": 0.001},
    }
    if low:
        system["conditioners"]["low_res"] = {"size": low, "resize": "area", "aug_schedule": None}
    return {
        "system": system,
        "data": _data(size, batch),
        "optimizer": {"name": "adamw", "learning_rate": rate, "weight_decay": 0.0, "clip_norm": 0.0},
        "training": {"steps": steps, "ema": [{"name": "constant", "decay": 0.9999}], "checkpoint_every": 10_000},
        "sampling": {
            "solver": "ddpm",
            "grid": "uniform",
            "steps": 1000 if variant == "lsun256" else 250,
            "quantize": bool(low),  # as stored training images are
        },
    }


def _classifier(variant: str) -> dict:
    size, batch, rate, steps, decay = _CLASSIFIERS[variant]
    return {
        "system": {
            "name": "noisy_classifier",
            "process": {"schedule": _schedule(size)},
            "network": {"name": f"adm_classifier{size}", "dtype": "bfloat16"},
            "num_classes": 1000,
        },
        "data": _data(size, batch, crop="zoom"),  # the short side is drawn from size to size / 0.8
        "optimizer": {
            "name": "adamw", "learning_rate": rate, "weight_decay": decay, "decay": "linear", "final_ratio": 0.0,
            "clip_norm": 0.0,
        },
        "training": {"steps": steps, "ema": [{"name": "constant", "decay": 0.9999}], "checkpoint_every": 10_000},
        # Published classifiers are the trained weights themselves.
        "sampling": {"steps": 250, "weights": "raw"},
    }  # fmt: skip


def get_config(variant: str = "64") -> ConfigDict:
    """The recipe of a variant; see the file's header."""
    chosen, tiny = split_variant(variant, (*_GENERATORS, *_CLASSIFIERS), "configs/adm.py")
    classifier = chosen in _CLASSIFIERS
    config = ConfigDict({"seed": 0, **(_classifier(chosen) if classifier else _generator(chosen))})
    if tiny:
        size = config.data.image_size
        shrink_to_shapes(config, low_res_size=8)
        config.data.source.size = 20  # so that there is something to crop
        config.system.process.schedule.num_steps = 50  # fewer would end a linear chain in noise alone
        upsampler = "_upsampler" if "low_res" in config.system.get("conditioners", {}) else ""
        name = "unet_classifier" if classifier else f"unet_adm{upsampler}{size}"
        config.system.network = {**_TINY_NETWORK, "name": name, "head_channels": 8}
    return config
