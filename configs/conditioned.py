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

from configs import imagen
from diffusion_jax.data.sources.shapes import CLASSES
from diffusion_jax.training.recipes import split_variant

TINY = ("tiny",)


def get_config(variant: str = "base") -> ConfigDict:
    """The recipe of a variant: base or tiny."""
    _, tiny = split_variant(variant, ("base",), "configs/conditioned.py")
    config = imagen.get_config("shapes,tiny" if tiny else "shapes")
    config.system.conditioners.update(
        labels={"num_classes": len(CLASSES), "drop": 0.1}, low_res={"size": 4}, image={"feed_mask": True}
    )
    config.data.degradation = ConfigDict({"name": "inpaint"})
    config.sampling.aug_level = 0.1
    return config
