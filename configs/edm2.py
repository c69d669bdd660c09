"""EDM2 on ImageNet-64: magnitude-preserving networks, learned uncertainty, averages chosen after training.

    python -m diffusion_jax.train --config=configs/edm2.py:s --workdir=runs/edm2/s --config.data.source.data_dir=PATH
    python -m diffusion_jax.post_hoc_ema --workdir=runs/edm2/s --sigma_rel=0.075 --out=runs/edm2/s_075
    python -m diffusion_jax.evaluate --workdir=runs/edm2/s_075 --features=inception --features_file=FILE

Data: ImageNet, prepared by tfds as array_record (extra `tfds`); needs data_dir.
Hardware and hours: published with 32 A100, days; batch 2048, in bfloat16 here (half precision with loss scaling there).
Published score: FID with 63 evaluations of the network, by size and width of the average: S 1.58 (0.075), M 1.43 (0.060),
L 1.33 (0.040), XL 1.33 (0.040) (arXiv 2312.02696, table 3).
Measured here: the parameter counts, exactly; nothing was trained on ImageNet.
Variants: xs, s, m, l, xl; `tiny` after a comma, or alone, trains for seconds on drawn shapes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.models.edm2_unet import CHANNELS
from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("tiny",)

_BATCH = 2048
# Size: learning rate, dropout, Mi images.
_SIZES = {
    "s": (0.010, 0.0, 1024),
    "xs": (0.012, 0.0, 1024),
    "m": (0.009, 0.1, 2048),
    "l": (0.008, 0.1, 1024),
    "xl": (0.007, 0.1, 640),
}


def get_config(variant: str = "s") -> ConfigDict:
    """The recipe of a size: xs, s, m, l or xl, and any with `,tiny`."""
    size, tiny = split_variant(variant, tuple(_SIZES), "configs/edm2.py")
    rate, dropout, mebi_images = _SIZES[size]
    config = ConfigDict(
        {
            "seed": 0,
            "system": {
                "process": {"schedule": {"name": "edm"}, "prediction": {"name": "edm", "sigma_data": 0.5}},
                "network": {
                    "name": "edm2",
                    "channels": CHANNELS[size.upper()],
                    "multipliers": (1, 2, 3, 4),
                    "num_res_blocks": 3,
                    "attention_resolutions": (16, 8),
                    "head_channels": 64,
                    "dropout": dropout,
                    "dtype": "bfloat16",
                    "remat": True,
                },
                "conditioners": {"labels": {"num_classes": 1000, "drop": 0.0}},
                "objective": {
                    "weighting": {"name": "edm", "sigma_data": 0.5},
                    "times": {"name": "log_normal", "mean": -0.8, "std": 1.6},
                    "uncertainty": True,
                },
            },
            "data": {
                "source": {
                    "name": "tfds",
                    "dataset": "imagenet2012",
                    "data_dir": "data",
                    "split": "train",
                    "test_split": "validation",
                },
                "image_size": 64,
                "channels": 3,
                "resize": "adm",
                "crop": "center",
                "flip": False,
                "batch_size": _BATCH,
                "num_threads": 16,
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": rate,
                "b2": 0.99,
                "warmup_steps": 10_000_000 // _BATCH,
                "decay": "inverse_sqrt",
                "decay_steps": 35_000,
                "clip_norm": 0.0,
            },
            "training": {
                "steps": mebi_images * 2**20 // _BATCH,
                "ema": [{"name": "power", "sigma_rel": 0.05}, {"name": "power", "sigma_rel": 0.1}],
                "checkpoint_every": 4096,
                "keep_every": 4096,  # 8 Mi images: what averages are later made of
            },
            "sampling": {"solver": "heun", "grid": {"name": "karras"}, "steps": 32, "threshold": "none"},
        }
    )
    if tiny:
        network = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
        shrink_to_shapes(config, 8, head_channels=8, dtype="float32", remat=False, **network)
        config.data.num_threads = 2
        config.optimizer.update(warmup_steps=2, decay_steps=3)
        config.training.update(checkpoint_every=2, keep_every=2)
    return config
