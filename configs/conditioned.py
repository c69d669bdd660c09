"""Everything at once: drawn shapes of a class, by their captions, from a low-resolution image, where a mask says.

    python -m diffusion_jax.train --config=configs/conditioned.py --workdir=runs/conditioned
    python -m diffusion_jax.sample --workdir=runs/conditioned --labels=all --task=inpaint --out=runs/conditioned/samples

It shows that conditioners compose: labels, text, low_res, and image and mask are a list of four.
Data: circles, squares, triangles, ... drawn from the example's index, their captions as one-hot words, holes drawn at random.
Hardware and hours: 2 CPU cores, minutes.
Published score: none.
Variants: base; tiny trains for seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.imagen import VOCABULARY, WORDS, words
from diffusion_jax.data.sources.shapes import CLASSES
from diffusion_jax.training.recipes import split_variant

TINY = ("tiny",)


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of a variant: base or tiny."""
    _, tiny = split_variant(variant, ("base",), "configs/conditioned.py")
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": {"schedule": "cosine_continuous", "prediction": "v"},
                "network": {
                    "name": "text_unet",
                    "channels": 32,
                    "multipliers": (1, 2),
                    "num_res_blocks": 1,
                    "attention_resolutions": (8,),
                    "num_heads": 2,
                    "groups": 8,
                },
                "conditioners": {
                    "labels": {"num_classes": len(CLASSES), "drop": 0.1},
                    "text": {"dim": len(VOCABULARY) + WORDS, "length": WORDS, "drop": 0.1},
                    "low_res": {"size": 4},
                    "image": {"feed_mask": True},
                },
                "objective": {"times": "low_discrepancy"},
            },
            "data": {
                "source": words(size=16, num_examples=20_000),
                "image_size": 16,
                "channels": 3,
                "batch_size": 32,
                "degradation": {"name": "inpaint"},
            },
            "optimizer": {"name": "adam", "learning_rate": 2e-3, "warmup_steps": 100, "decay": "cosine", "clip_norm": 1.0},
            "training": {"steps": 1000, "ema": [{"name": "constant", "decay": 0.99}], "checkpoint_every": 200},
            "sampling": {"solver": "dpmpp_2m", "steps": 12, "guidance": 2.0, "aug_level": 0.1},
        }
    )
    if tiny:
        config.system.network.update(channels=8, groups=4)
        config.data.source.source.num_examples = 64
        config.data.batch_size = 8
        config.training.update(steps=4, checkpoint_every=4)
        config.sampling.steps = 2
    return config
