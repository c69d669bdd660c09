"""Imagen's pixel cascade of given text embeddings: 64x64 base, 64 -> 256, and 256 -> 1024 trained on crops.

    python -m diffusion_jax.train --config=configs/imagen.py:base --workdir=runs/imagen/base \
        --config.data.source.path=IMAGES --config.data.source.embeddings=EMBEDDINGS
    python -m diffusion_jax.train --config=configs/imagen.py:sr256 --workdir=runs/imagen/sr256 ...
    python -m diffusion_jax.train --config=configs/imagen.py:sr1024 --workdir=runs/imagen/sr1024 ...
    python -m diffusion_jax.sample --workdir=runs/imagen/base,runs/imagen/sr256,runs/imagen/sr1024 --text=PROMPTS.npz \
        --aug_level=0/0.1/0.1 --out=runs/imagen/samples

Data: a folder of images, and the embeddings of their texts by a frozen encoder (T5-XXL: 4096 features), made beforehand: see
docs/data.md. Another encoder: --config.system.conditioners.text.dim=D.
Hardware and hours: published with 256, 128 and 128 TPU-v4 chips for 2.5M steps of batch 2048.
Published score: zero-shot FID-30K on COCO 7.27, guidance 1.35 in the base and 8 above (arXiv 2205.11487, table 1).
Measured here: 2.42B, 497M and 488M parameters (published: 2B, 600M and 400M; the paper leaves details open); text-conditional
models of drawn shapes: docs/systems.md.
Variants: base, sr256, sr1024; `tiny` after a comma, or alone, trains for seconds on drawn shapes, whose captions are one-hot
words: base 8x8, then 16x16, then 32x32 trained on 16x16 crops. shapes: a 16x16 model of the same captions that two CPU cores
train in minutes.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.data.sources.shapes import CLASSES, COLOURS
from diffusion_jax.training.recipes import split_variant

TINY = ("base,tiny", "sr1024,tiny")

VOCABULARY = ("a", "on", "small", "medium", "large", *COLOURS, *CLASSES)
"""The words of drawn shapes' captions, such as "a small red circle on blue"."""
WORDS = 6


def words(**shapes: Any) -> dict:
    """Drawn shapes with one-hot words, as a data source; a token has len(VOCABULARY) + WORDS features."""
    source = {"name": "shapes", **shapes}
    return {"name": "one_hot_words", "source": source, "vocabulary": VOCABULARY, "length": WORDS}


def _config(image_size: int, system: dict, optimizer: dict, sampling: dict, low_res: dict | None = None) -> dict:
    return {
        "seed": 0,
        "system": {"conditioners": {"text": {"dim": 4096, "length": 128, "drop": 0.1}, **(low_res or {})}, **system},
        "data": {
            "source": {"name": "folder", "path": "images", "embeddings": "embeddings"},
            "image_size": image_size,
            "channels": 3,
            "crop": "center",
            "batch_size": 2048,
            "num_threads": 16,
        },
        "optimizer": {"learning_rate": 1e-4, "warmup_steps": 10_000, "decay": "cosine", "clip_norm": 1.0, **optimizer},
        "training": {
            "steps": 2_500_000,
            "ema": [{"name": "constant", "decay": 0.9999}],
            "checkpoint_every": 5000,
            "keep_every": 100_000,
        },
        "sampling": {"solver": "ddpm", "threshold": "dynamic", "percentile": 99.5, **sampling},
    }


def _base() -> dict:
    system = {
        "process": {"schedule": {"name": "cosine_continuous"}, "prediction": "eps"},
        "network": {"name": "unet_imagen_base64", "dtype": "bfloat16", "remat": True},
    }
    return _config(64, system, {"name": "adafactor", "parameter_scale": True}, {"steps": 256, "guidance": 1.35})


def _sr256() -> dict:
    system = {
        "process": {"schedule": {"name": "cosine_continuous"}, "prediction": "eps"},
        "network": {"name": "unet_imagen_sr256", "dtype": "bfloat16", "remat": True},
    }
    sampling = {"steps": 128, "guidance": 8.0, "aug_level": 0.1}
    return _config(256, system, {"name": "adam"}, sampling, {"low_res": {"size": 64}})


def _sr1024() -> dict:
    config = _sr256()
    # Betas from 1e-4 to 0.02 in 1,000 steps, in continuous time.
    config["system"].update(
        process={"schedule": {"name": "vp_sde", "beta_min": 0.1, "beta_max": 20.0}, "prediction": "eps"},
        network={"name": "unet_imagen_sr1024", "dtype": "bfloat16", "remat": True},
    )
    config["system"]["conditioners"]["low_res"] = {"size": 256, "crop_size": 256}
    config["data"]["image_size"] = 1024
    return config


def _shapes() -> dict:
    config = _base()
    config["system"].update(
        process={"schedule": {"name": "cosine_continuous"}, "prediction": "v"},
        network={
            "name": "text_unet",
            "channels": 32,
            "multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (8,),
            "num_heads": 2,
            "groups": 8,
        },
        objective={"times": "low_discrepancy"},
    )
    config["system"]["conditioners"]["text"].update(dim=len(VOCABULARY) + WORDS, length=WORDS)
    config["data"].update(source=words(size=16, num_examples=20_000), image_size=16, batch_size=32, num_threads=2)
    config["optimizer"] = {"name": "adam", "learning_rate": 2e-3, "warmup_steps": 100, "decay": "cosine", "clip_norm": 1.0}
    config["training"].update(steps=1000, ema=[{"name": "constant", "decay": 0.99}], checkpoint_every=200, keep_every=0)
    config["sampling"] = {"solver": "dpmpp_2m", "steps": 12, "guidance": 3.0, "threshold": "dynamic"}
    return config


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of a stage: base, sr256 or sr1024, and any with `,tiny`; or shapes."""
    stages = {"base": _base, "sr256": _sr256, "sr1024": _sr1024, "shapes": _shapes}
    stage, tiny = split_variant(variant, tuple(stages), "configs/imagen.py")
    config = ConfigDict(stages[stage]())
    if tiny:
        small = {"channels": 8, "groups": 4, "num_heads": 2}
        size = {"sr256": 16, "sr1024": 32}.get(stage, 8)
        if stage in ("base", "shapes"):
            small |= {"multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "head_channels": None}
        else:
            small |= {"multipliers": (1, 2), "num_res_blocks": (1, 1), "strides": (1, 2), "text_attention": (False, True)}
            small["self_attention"] = (False, stage == "sr256")
            config.system.conditioners.low_res.size = size // 2
        if stage == "sr1024":
            config.system.conditioners.low_res.crop_size = 16
        config.system.network.update(dtype="float32", remat=False, **small)
        config.system.conditioners.text.update(dim=len(VOCABULARY) + WORDS, length=WORDS)
        config.data.source = ConfigDict(words(size=size, num_examples=64))
        config.data.update(image_size=size, batch_size=8, num_threads=2)
        config.training.update(steps=4, checkpoint_every=4)
        config.sampling.steps = 2
    return config
