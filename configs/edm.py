"""EDM: the design space of Karras et al. 2022 (arXiv 2206.00364), its networks, its training and its samplers.

    python -m diffusion_jax.train --config=configs/edm.py:cifar10 --workdir=runs/edm/cifar10 --config.data.source.data_dir=PATH
    python -m diffusion_jax.train --config=configs/edm.py:ffhq64 --workdir=runs/edm/ffhq64 --config.data.source.path=PATH
    python -m diffusion_jax.evaluate --workdir=runs/edm/cifar10 --features=inception --features_file=FILE --num=50000
    python -m diffusion_jax.train --config=configs/edm.py:digits --workdir=runs/edm/digits

Data: CIFAR-10 and ImageNet prepared by tfds as array_record (extra `tfds`; they need data_dir); FFHQ and AFHQv2 as a folder of
images (they need path); `digits` needs nothing.
Hardware and hours: published with 8 V100, two days for CIFAR-10, four for FFHQ and AFHQv2; ImageNet-64 with 32 A100, 13 days.
`digits`: 2 CPU cores, a few minutes.
Published score: FID of DDPM++ / NCSN++, deterministic: CIFAR-10 conditional 1.79 / 1.79, unconditional 1.97 / 1.98 (35
evaluations), FFHQ 2.39 / 2.53, AFHQv2 1.96 / 2.16 (79); of configuration A on CIFAR-10 unconditional 3.01 / 3.77.
ImageNet-64 1.36, stochastic, 511 evaluations. The best of three evaluations of the best checkpoint.
Measured here: the parameter counts, exactly; the samplers against the paper's algorithms; docs/systems.md has what
experiments/edm_table.py found on digits. Nothing was trained on the published data.
Variants: cifar10, cifar10_cond, ffhq64, afhqv2 (DDPM++), each with `_ve` (NCSN++) after it, imagenet64 (ADM); vp, ve (the score
SDEs as configuration A has them, on CIFAR-10) and iddpm (improved DDPM's levels, on ImageNet-64), with the samplers of their
columns; digits. `tiny` after a comma, or alone, trains for seconds on drawn shapes.

Sampling pre-trained networks with EDM's stochastic sampler: {"name": "heun", "space": "sigma"} with s_churn, s_min, s_max,
s_noise = 80, 0.05, 50, 1.003 for ADM on ImageNet-64; 30, 0.01, 1, 1.007 (VP) and 80, 0.05, 1, 1.007 (VE) on CIFAR-10.
Networks trained as here on CIFAR-10, FFHQ and AFHQv2 are best without.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.process import edm_design
from diffusion_jax.sampling import edm_design as sampling_design
from diffusion_jax.training.recipes import shrink_to_shapes, split_variant

TINY = ("cifar10_cond,tiny", "ve,tiny")

_CIFAR10 = {"name": "tfds", "dataset": "cifar10", "data_dir": "data", "split": "train", "test_split": "test"}
_IMAGENET = {**_CIFAR10, "dataset": "imagenet2012", "test_split": "validation"}
_FOLDER = {"name": "folder", "path": "data/images"}

# Images seen, batch, learning rate, dropout, probability of augmentation, half-life of the average, all in images.
_TRAINING = {
    "cifar10": (200e6, 512, 1e-3, 0.13, 0.12, 0.5e6),
    "ffhq64": (200e6, 256, 2e-4, 0.05, 0.15, 0.5e6),
    "afhqv2": (200e6, 256, 2e-4, 0.25, 0.15, 0.5e6),
    "imagenet64": (2500e6, 4096, 1e-4, 0.10, 0.0, 50e6),
}
_VARIANTS = (
    "cifar10", "cifar10_ve", "cifar10_cond", "cifar10_cond_ve", "ffhq64", "ffhq64_ve", "afhqv2", "afhqv2_ve", "imagenet64",
    "vp", "ve", "iddpm", "digits",
)  # fmt: skip


def _data(source: dict, size: int, batch: int, augment: float) -> dict:
    # Augmentation flips, and tells the network; flips in the data would leak into the samples.
    return {
        "source": dict(source),
        "image_size": size,
        "channels": 3,
        "flip": False,
        "augment": augment,
        "batch_size": batch,
        "num_threads": 16,
    }


def _system(column: str, network: str, num_classes: int, **fields) -> dict:
    # Squared errors summed over pixels, as published: Adam cares about the scale through its epsilon alone.
    return {
        **_column(column),
        "network": {"name": network, **fields},
        "conditioners": {"labels": {"num_classes": num_classes, "drop": 0.0}} if num_classes else {},
    }


def _column(column: str, distance: str = "l2_sum") -> dict:
    """The process and the objective of a column."""
    fields = edm_design.column(column)
    return {"process": fields.pop("process"), "objective": {**fields, "distance": distance}}


def _edm(name: str) -> dict:
    """Configuration F: EDM's preconditioning, loss and augmentation."""
    base, ncsnpp = name.removesuffix("_ve"), name.endswith("_ve")
    dataset = base.removesuffix("_cond")
    images, batch, rate, dropout, augment, half_life = _TRAINING[dataset]
    kind = "ncsnpp" if ncsnpp else "ddpmpp"
    network, size, source, classes, steps = {
        "cifar10": (f"edm_{kind}_cifar10", 32, _CIFAR10, 10 if base.endswith("_cond") else 0, 18),
        "ffhq64": (f"edm_{kind}64", 64, _FOLDER, 0, 40),
        "afhqv2": (f"edm_{kind}64", 64, _FOLDER, 0, 40),
        "imagenet64": ("edm_adm64", 64, _IMAGENET, 1000, 256),
    }[dataset]
    system = _system("edm", network, classes, dropout=dropout)
    if augment:
        system["conditioners"]["augment"] = {"name": "vector"}
    sampling = {**sampling_design.column("edm"), "steps": steps}
    if dataset == "imagenet64":
        system["network"].update(dtype="bfloat16", remat=True)
        sampling["solver"].update(s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003)
    data = _data(source, size, batch, augment)
    if dataset == "imagenet64":
        data.update(resize="adm", crop="center")
    return {
        "system": system,
        "data": data,
        "optimizer": {"name": "adam", "learning_rate": rate, "warmup_steps": int(10e6 / batch), "clip_norm": 0.0},
        "training": {
            "steps": int(images / batch),
            "ema": [{"name": "half_life", "images": half_life}],
            "checkpoint_every": 5000,
            "keep_every": 20_000,
        },
        "sampling": sampling,
    }


def _baseline(column: str) -> dict:
    """The columns before EDM: VP and VE with the networks and the optimiser of the score SDEs, improved DDPM on ImageNet-64."""
    if column == "iddpm":
        config = _edm("imagenet64")
        system = {**config["system"], **_column("iddpm")}
        return {**config, "system": system, "sampling": {**sampling_design.column("iddpm"), "steps": 250}}
    network = {"vp": "song_ddpmpp_cifar10", "ve": "song_ncsnpp_cifar10"}[column]
    decay = {"vp": 0.9999, "ve": 0.999}[column]
    return {
        "system": _system(column, network, 0),
        "data": {**_data(_CIFAR10, 32, 128, 0.0), "flip": True},
        "optimizer": {"name": "adam", "learning_rate": 2e-4, "warmup_steps": 5000, "clip_norm": 1.0},
        "training": {
            "steps": int(200e6 / 128),
            "ema": [{"name": "constant", "decay": decay}],
            "checkpoint_every": 10_000,
            "keep_every": 100_000,
        },
        "sampling": {**sampling_design.column(column), "steps": 1000},
    }


def _digits() -> dict:
    """EDM for two CPU cores."""
    fields = dict(channels=16, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
    system = _system("edm", "song_unet", 10, **fields)
    data = {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 64}
    return {
        "system": {**system, "objective": {**system["objective"], "distance": "l2"}},
        "data": data,
        "optimizer": {"name": "adam", "learning_rate": 2e-3, "warmup_steps": 100, "decay": "cosine", "clip_norm": 1.0},
        "training": {"steps": 2000, "ema": [{"name": "half_life", "images": 6400}], "checkpoint_every": 1000},
        "sampling": {**sampling_design.column("edm"), "steps": 10},
    }


def get_config(variant: str = "cifar10") -> ConfigDict:
    """The recipe of a variant, see above; any with `,tiny`."""
    name, tiny = split_variant(variant, _VARIANTS, "configs/edm.py")
    builder = {"vp": _baseline, "ve": _baseline, "iddpm": _baseline}.get(name, _edm)
    config = ConfigDict({"seed": 0, **(_digits() if name == "digits" else builder(name))})
    if tiny:
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    network = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "dtype": "float32"}
    if config.system.network.name == "edm_adm64":
        network |= {"groups": 4, "head_channels": 8, "remat": False}
    shrink_to_shapes(config, 8, **network)
    config.data.update(channels=3, num_threads=2)
    config.training.update(checkpoint_every=2)
