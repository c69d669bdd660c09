"""Consistency models: one or two evaluations from noise to an image, from data alone or distilled from an EDM teacher.

    python -m diffusion_jax.train --config=configs/consistency.py:digits --workdir=runs/consistency/ct
    python -m diffusion_jax.train --config=configs/consistency.py:digits_teacher --workdir=runs/consistency/teacher
    python -m diffusion_jax.train --config=configs/consistency.py:digits_distilled --workdir=runs/consistency/cd \
        --config.frozen.teacher=runs/consistency/teacher
    python -m diffusion_jax.train --config=configs/consistency.py:cifar10 --workdir=runs/consistency/cifar10

Data: scikit-learn's digits; or CIFAR-10, prepared by TensorFlow Datasets (--config.data.source.data_dir=DIR).
Hardware and hours: digits: 2 CPU cores, minutes. CIFAR-10: 8 accelerators, days; not run here.
Published score: CIFAR-10 FID at 1 and 2 steps: distilled (with LPIPS) 3.55 and 2.93, trained 8.70 and 5.83 (Song et al.
2023, arXiv 2303.01469). The levels (18 in distillation; 2 to 151 over 800,000 steps in training, mu0 0.9), the boundary,
the target network and RAdam without weight decay are the paper's; the distance here is l2 (or the improved recipe's
pseudo-Huber), not LPIPS, the network is DDPM's, and batch, rates and averages are not verified.
Variants: digits (improved training: pseudo-Huber, log-normal pairs, doubling levels, no target average), digits_teacher,
digits_distilled, cifar10 (training), cifar10_improved, cifar10_teacher, cifar10_distilled; `tiny` after a comma trains for
seconds, on digits.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.training.recipes import small_unet, split_variant

VARIANTS = (
    "digits", "digits_teacher", "digits_distilled", "cifar10", "cifar10_improved", "cifar10_teacher", "cifar10_distilled",
)  # fmt: skip
TINY = ("digits,tiny", "digits_distilled,tiny")


def _objective(kind: str, steps: int) -> dict:
    """The objective of the plain and the improved training, and of distillation."""
    if kind == "distilled":
        levels = {"name": "fixed", "count": 18}
        return {"name": "consistency", "paths": "teacher", "levels": levels, "target_decay": 0.95}
    if kind == "improved":
        return {
            "name": "consistency",
            "levels": {"name": "doubling", "start": 10, "end": 1280, "steps": steps},
            "pairs": {"name": "log_normal", "mean": -1.1, "std": 2.0},
            "target_decay": 0.0,
            "metric": "pseudo_huber",
            "step_weighting": "inverse_step",
        }
    levels = {"name": "growing", "start": 2, "end": 150, "steps": steps}
    return {"name": "consistency", "levels": levels, "target_decay": 0.9}


def _digits(kind: str) -> dict:
    config = {
        "seed": 0,
        "system": {
            "objective": _objective(kind, 2000),
            "process": {"schedule": "edm", "prediction": {"name": "consistency", "sigma_data": 0.5, "sigma_min": 0.002}},
            "network": small_unet(16, (1, 2), groups=4),
            "conditioners": {"labels": {"num_classes": 10, "drop": 0.1}},
        },
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 64},
        "optimizer": {"name": "radam", "learning_rate": 1e-3, "decay": "cosine", "clip_norm": 1.0},
        "training": {"steps": 2000, "ema": [{"name": "constant", "decay": 0.995}], "checkpoint_every": 500},
        "sampling": {
            "solver": "consistency",
            "grid": {"name": "levels", "levels": (80.0, 4.0, 1.0, 0.3)},
            "steps": 4,
            "threshold": "none",
        },
    }
    if kind == "distilled":
        config["system"]["objective"]["guidance"] = 2.0
        config["frozen"] = {"teacher": None}
    return config


def _cifar10(kind: str) -> dict:
    config = _digits(kind)
    steps = {"improved": 400_000}.get(kind, 800_000)
    config["system"].update(
        conditioners={}, network={"name": "unet_ddpm_cifar10", "dropout": 0.3 if kind == "improved" else 0.0},
        objective=_objective(kind, steps),
    )  # fmt: skip
    config["data"] = {
        "source": {"name": "tfds", "dataset": "cifar10"},
        "image_size": 32,
        "channels": 3,
        "flip": True,
        "batch_size": 1024 if kind == "improved" else 512,
    }
    config["optimizer"] = {"name": "radam", "learning_rate": 1e-4 if kind == "improved" else 4e-4}
    config["training"] = {"steps": steps, "ema": [{"name": "constant", "decay": 0.9999}]}
    config["sampling"].update(grid={"name": "levels", "levels": (80.0,)}, steps=1)
    return config


def _teacher(config: dict) -> dict:
    """An EDM run: the teacher."""
    config["system"] = {
        "process": {"schedule": "edm", "prediction": {"name": "edm", "sigma_data": 0.5}},
        "objective": {"weighting": "edm", "times": "log_normal"},
        **{field: config["system"][field] for field in ("network", "conditioners")},
    }
    config["optimizer"].update(name="adam", warmup_steps=100)
    config["sampling"] = {"solver": "heun", "grid": "karras", "steps": 18, "threshold": "none"}
    if config["system"]["conditioners"]:
        config["optimizer"].update(learning_rate=2e-3)
        config["sampling"]["guidance"] = 2.0
    return config


def get_config(variant: str = "digits") -> ConfigDict:
    """The recipe of a variant, and any with `,tiny`; see the file's header."""
    chosen, tiny = split_variant(variant, VARIANTS, "configs/consistency.py")
    data, _, kind = chosen.partition("_")
    plain = "improved" if data == "digits" and not kind else "plain"
    make = _cifar10 if data == "cifar10" and not tiny else _digits
    config = make(kind if kind in ("improved", "distilled") else plain)
    config = ConfigDict(_teacher(config) if kind == "teacher" else config)
    if tiny:
        config.system.network.update(channels=8, groups=4)
        config.data.batch_size = 8
        config.training.update(steps=2, checkpoint_every=2)
        if kind != "teacher":
            config.sampling.update(grid={"name": "levels", "levels": (80.0, 0.661)}, steps=2)
    return config
