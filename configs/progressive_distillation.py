"""Progressive distillation: a teacher's many steps halved to one, each student taught by the one before.

    python -m diffusion_jax.train --config=configs/progressive_distillation.py:digits_teacher --workdir=runs/distilled/teacher
    python -m diffusion_jax.train --config=configs/progressive_distillation.py:digits --workdir=runs/distilled/steps_32 \
        --config.frozen.teacher=runs/distilled/teacher --config.system.objective.num_steps=32 --config.sampling.steps=32

and so on, with each run as the next one's teacher and half its steps (the guidance is the first student's alone:
--config.system.guidance=1 from the second on); `training.stages.halve` goes through all of them, and
`python -m experiments.distilled_digits` does it on digits.

Data: scikit-learn's digits; or CIFAR-10, prepared by TensorFlow Datasets (--config.data.source.data_dir=DIR).
Hardware and hours: digits: 2 CPU cores, minutes for all. CIFAR-10: 8 accelerators, about a day for the teacher, and as long
for the students; not run here.
Published score: CIFAR-10 unconditional, FID at 1, 2, 4 and 8 steps: 9.12, 4.51, 3.00, 2.57 (Salimans & Ho 2022, arXiv
2202.00512). The objective is exact, as are the 50,000 updates a stage (twice that for the last two) with a rate that falls
to 0 linearly; the network here is DDPM's, and the teacher's 8,192 steps, the batch and the rates are not verified.
Variants: digits, digits_teacher, cifar10, cifar10_teacher; `tiny` after a comma trains for seconds, on digits.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import small_unet, split_variant

VARIANTS = ("digits", "digits_teacher", "cifar10", "cifar10_teacher")
TINY = ("digits,tiny",)


def _digits() -> dict:
    return {
        "seed": 0,
        "system": {
            "objective": {"name": "progressive_distillation", "num_steps": 32, "guidance": 2.0},
            "process": {"schedule": "cosine_continuous", "prediction": "v"},
            "network": small_unet(16, (1, 2), groups=4),
            "conditioners": {"labels": {"num_classes": 10, "drop": 0.1}},
        },
        "frozen": {"teacher": None},
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 64},
        "optimizer": {"name": "adamw", "learning_rate": 5e-4, "decay": "linear", "clip_norm": 1.0},
        "training": {"steps": 200, "ema": [{"name": "constant", "decay": 0.98}], "checkpoint_every": 200},
        "sampling": {"solver": "ddim", "grid": "trailing", "steps": 32, "threshold": "none"},
    }


def _cifar10() -> dict:
    config = _digits()
    config["system"].update(conditioners={}, network={"name": "unet_ddpm_cifar10", "dropout": 0.0})
    config["system"]["objective"].update(num_steps=4096, guidance=1.0)
    config["data"] = {
        "source": {"name": "tfds", "dataset": "cifar10"},
        "image_size": 32,
        "channels": 3,
        "flip": True,
        "batch_size": 128,
    }
    config["optimizer"] = {"name": "adam", "learning_rate": 2e-4, "decay": "linear", "clip_norm": 1.0}
    config["training"] = {"steps": 50_000, "ema": [{"name": "constant", "decay": 0.9999}]}
    config["sampling"]["steps"] = 4096
    return config


def _teacher(config: dict) -> dict:
    """The run that the first student learns from."""
    del config["frozen"]
    config["system"]["objective"] = {"weighting": "truncated_snr", "times": "low_discrepancy"}
    if config["data"]["source"]["name"] == "digits":
        config["optimizer"].update(learning_rate=2e-3, warmup_steps=100, decay="cosine")
        config["training"].update(steps=1000, ema=[{"name": "constant", "decay": 0.995}])
        config["sampling"].update(steps=64, guidance=2.0)
    else:
        config["system"]["network"]["dropout"] = 0.2
        config["optimizer"].update(decay="constant", warmup_steps=1000)
        config["training"].update(steps=800_000)
        config["sampling"].update(steps=1024)
    return config


def get_config(variant: str = "digits") -> ConfigDict:
    """The recipe of a variant: digits, digits_teacher, cifar10, cifar10_teacher, and any with `,tiny`."""
    chosen, tiny = split_variant(variant, VARIANTS, "configs/progressive_distillation.py")
    config = _cifar10() if chosen.startswith("cifar10") and not tiny else _digits()
    config = ConfigDict(_teacher(config) if chosen.endswith("teacher") else config)
    if tiny:
        config.system.network.update(channels=8, groups=4)
        config.data.batch_size = 8
        config.training.update(steps=2, checkpoint_every=2)
        config.sampling.steps = 2
    return config
