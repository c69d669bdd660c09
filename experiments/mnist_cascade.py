"""Train a two-stage cascade on real handwritten digits and look at what it draws: minutes on a laptop's CPU.

    python -m experiments.mnist_cascade

A 16x16 class-conditional base, then 16 -> 32 super-resolution with noise-conditioning augmentation (Ho et al. 2021, arXiv
2106.15282), on the 4,500 training images of the bundled MNIST subset; then a small classifier, trained on the same real
images, says how often it sees the digit that was asked for. The recipes are configs/mnist.py:base and :sr.

Interrupted, it goes on where it was when run again. What it found is in README.md.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from absl import flags

from diffusion_jax import evaluation, training
from diffusion_jax.training.recipes import load_recipe

from . import common

_OUT = flags.DEFINE_string("out", "runs/mnist", "Where runs, pictures and metrics.json go.")
_VARIANT = flags.DEFINE_enum("variant", "full", ["full", "tiny"], "tiny: seconds, to see that everything works.")
_NUM = flags.DEFINE_integer("num", 1000, "Samples that are evaluated.")
_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "mnist.py"


def study(out: Path, variant: str, num: int) -> dict:
    """Train both stages, evaluate the cascade; returns what is written to out/metrics.json."""
    suffix = ",tiny" if variant == "tiny" else ""
    stages = [out / "base", out / "sr"]
    seconds = {}
    for stage in stages:
        began = time.monotonic()
        training.train(load_recipe(f"{_RECIPE}:{stage.name}{suffix}"), stage)
        seconds[f"train_{stage.name}"] = time.monotonic() - began
    began = time.monotonic()
    metrics = evaluation.evaluate_run(stages, out / "evaluation", evaluation.Settings(num=num))
    seconds["evaluate"] = time.monotonic() - began
    metrics = {**{key: value for key, value in metrics.items() if key != "settings"}, "seconds": seconds}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    shutil.copyfile(out / "evaluation" / "real_and_samples.png", out / "real_and_samples.png")
    return metrics


def main() -> str:
    """Run the study and say where to look."""
    out = Path(_OUT.value)
    metrics = study(out, _VARIANT.value, _NUM.value)
    shown = ("classifier_accuracy", "base_agreement", "cascade_agreement", "frechet_distance", "frechet_reference")
    lines = [f"{name:22s}{metrics[name]:.4f}" for name in shown if name in metrics]
    lines += [
        "",
        f"real digits (left) beside samples (right): {out / 'real_and_samples.png'}",
        f"all numbers:                               {out / 'metrics.json'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    common.run_program("mnist_cascade", main)
