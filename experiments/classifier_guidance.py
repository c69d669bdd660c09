"""Guidance with and without a classifier on real digits: what the scale buys in agreement, and costs in diversity.

    python -m experiments.classifier_guidance --out=runs/guidance --picture=docs/images/guidance.png

On the 8x8 digits of scikit-learn three small runs are trained: an unconditional model, a class-conditional one with condition
dropout, and a noisy classifier. The unconditional model is then guided by the classifier (Dhariwal & Nichol 2021, arXiv
2105.05233), and the conditional one without it (Ho & Salimans 2022, arXiv 2207.12598), at several scales. A small classifier
of clean digits, that guidance never saw, measures the share of samples in which it sees the digit that was asked for, and the
mean distance between the features of two samples of one digit.

Interrupted, it goes on where it was when run again. What it found is in docs/systems.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from diffusion_jax import training
from diffusion_jax.data.files import tile, write_image
from diffusion_jax.evaluation.held_out import accuracy_by_time
from diffusion_jax.features import TrainedClassifier
from diffusion_jax.features.classifier import classifier_of_data
from diffusion_jax.inference import Generator, Requests, Run, find
from diffusion_jax.training.previews import labelled

from . import common

_OUT = flags.DEFINE_string("out", "runs/guidance", "Where runs and metrics.json go.")
_PICTURE = flags.DEFINE_string("picture", None, "A picture: rows of one digit each scale; in --out if left out.")
_STEPS = flags.DEFINE_integer("steps", 400, "Training steps of the two models; the classifier takes three times as many.")
_NUM = flags.DEFINE_integer("num", 200, "Samples at each scale.")

CLASSIFIER_SCALES = (0.0, 1.0, 3.0, 9.0)
GUIDANCE_SCALES = (1.0, 2.0, 4.0, 8.0)
BINS = 8
_PROCESS = {"schedule": {"name": "cosine", "num_steps": 200}, "prediction": "eps"}
_NETWORK = {"name": "unet", "channels": 16, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,),
            "num_heads": 2, "groups": 8}  # fmt: skip
_CLASSIFIER = {**_NETWORK, "name": "unet_classifier", "head_channels": 16}
_SYSTEMS: dict[str, dict[str, Any]] = {
    "classifier": {"name": "noisy_classifier", "process": _PROCESS, "network": _CLASSIFIER, "num_classes": 10},
    "unconditional": {"process": _PROCESS, "network": _NETWORK},
    "conditional": {"process": _PROCESS, "network": _NETWORK, "conditioners": {"labels": {"num_classes": 10, "drop": 0.15}}},
}


def recipe(name: str, steps: int) -> dict[str, Any]:
    """The configuration of one of the three runs."""
    classifier = name == "classifier"
    return {
        "system": _SYSTEMS[name],
        "data": {
            "source": {"name": "digits"},
            "image_size": 8,
            "channels": 1,
            "batch_size": 64 if classifier else 32,
            "crop": "zoom" if classifier else "center",
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 2e-3,
            "warmup_steps": 100,
            "decay": "linear" if classifier else "cosine",
            "weight_decay": 0.05 if classifier else 0.0,
            "clip_norm": 1.0,
        },
        "training": {
            "steps": 3 * steps if classifier else steps,
            "ema": [{"name": "constant", "decay": 0.99}],
            "tensorboard": False,
        },
        "sampling": {"solver": "ddpm", "steps": 20},
    }


def measured(classifier: TrainedClassifier, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Agreement with the labels, and the mean distance between features of two images of one label."""
    seen, features = classifier.look(images)
    distances = []
    for label in np.unique(labels):
        own = features[labels == label]
        between = np.linalg.norm(own[:, None] - own[None], axis=-1)
        distances.append(between.sum() / (len(own) * (len(own) - 1)))
    return {"agreement": float((seen == labels).mean()), "diversity": float(np.mean(distances))}


def draw(workdir: Path, num: int, **sampling: Any) -> np.ndarray:
    """Samples of the digits in turn, uint8 [num, 8, 8, 1]."""
    runs = find([str(workdir)], sampling={name: [value] for name, value in sampling.items()})
    params, _ = runs.load()
    generator = Generator(runs.cascade, params, batch_size=num)
    digits = Requests({"label": np.arange(10, dtype=np.int32)})
    return np.concatenate([drawn.images[-1] for drawn in generator(range(num), digits)])


def study(out: Path, picture: Path, steps: int, num: int) -> dict[str, Any]:
    """Train, guide, measure; returns what is written to out/metrics.json."""
    for name in _SYSTEMS:
        training.train(recipe(name, steps), out / name)
    noisy, conditional = Run.open(out / "classifier"), Run.open(out / "conditional")
    found: dict[str, Any] = {"accuracy": accuracy_by_time(noisy.system, noisy.params(), noisy.pipeline("test"), bins=BINS)}
    clean = classifier_of_data(out, conditional.data)
    found["held out"] = {"accuracy": clean.accuracy, **measured(clean, *common.digits("test"))}
    labels, rows = np.arange(num) % 10, []
    ways = [("classifier", "unconditional", "classifier_scale", CLASSIFIER_SCALES),
            ("classifier_free", "conditional", "guidance", GUIDANCE_SCALES)]  # fmt: skip
    for way, run, field, scales in ways:
        found[way] = {}
        for scale in scales:
            more = {"classifier": str(out / "classifier")} if way == "classifier" else {}
            images = draw(out / run, num, **{field: scale}, **more)
            found[way][f"{scale:g}"] = measured(clean, images, labels)
            sheet = tile(images[np.arange(0, min(num, 160), 10)[:16] + 3], columns=16, scale=3)
            rows.append(labelled(sheet, f"{way.replace('_', '-')} {scale:g}"))
    write_image(picture, np.concatenate(rows))
    (out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def report(found: dict[str, Any]) -> str:
    """The figures as text."""
    accuracy = found["accuracy"]
    tops = {key: value for key, value in accuracy.items() if key.startswith("accuracy_top1_t_")}
    lines = ["noisy classifier, top-1 accuracy on held-out digits, by t:"]
    lines += [f"  {key.removeprefix('accuracy_top1_t_').replace('_', ' '):>16s}  {value:.3f}" for key, value in tops.items()]
    real = found["held out"]
    lines += ["", f"held-out digits: agreement {real['agreement']:.3f}, diversity {real['diversity']:.2f}"]
    for way in ("classifier", "classifier_free"):
        lines += ["", f"{way}: scale, agreement, diversity"]
        lines += [f"  {scale:>4s}  {row['agreement']:.3f}  {row['diversity']:.2f}" for scale, row in found[way].items()]
    return "\n".join(lines)


def main() -> str:
    """Run the study and print what was found."""
    out = Path(_OUT.value)
    found = study(out, Path(_PICTURE.value or out / "guidance.png"), _STEPS.value, _NUM.value)
    return report(found)


if __name__ == "__main__":
    common.run_program("classifier_guidance", main)
