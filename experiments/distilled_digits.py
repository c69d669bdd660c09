"""Halve the steps of a digits model again and again, and see what is lost: minutes on a laptop's CPU.

    python -m experiments.distilled_digits

A class-conditional teacher on scikit-learn's 8x8 digits, sampled with guidance 2 in 64 steps; then students of 16, 8, 4, 2 and
1 steps by progressive distillation (Salimans & Ho 2022, arXiv 2202.00512), of which the first has the guidance distilled into
it. A small classifier, trained on the same real digits, says how often it sees the digit that was asked for, and the Frechet
distance in its features to the real digits says how alike the samples are to them as a whole; the teacher at
the students' steps is what there was without distillation. The recipes are configs/progressive_distillation.py:digits_teacher
and :digits.

Interrupted, it goes on where it was when run again. What it found is in docs/systems.md.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from diffusion_jax import training
from diffusion_jax.data.files import beside, tile, write_image
from diffusion_jax.features import agreement, train_classifier
from diffusion_jax.inference import Run
from diffusion_jax.metrics.frechet import Moments, frechet_distance
from diffusion_jax.rng import named
from diffusion_jax.training.previews import labelled
from diffusion_jax.training.recipes import load_recipe
from diffusion_jax.training.stages import halve

from . import common

_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "progressive_distillation.py"
TEACHER_STEPS, FIRST = 64, 16


def train(out: Path, variant: str) -> list[Path]:
    """The teacher's directory, and those of the students."""
    suffix = ",tiny" if variant == "tiny" else ""
    training.train(load_recipe(f"{_RECIPE}:digits_teacher{suffix}"), out / "teacher")
    students = halve(load_recipe(f"{_RECIPE}:digits{suffix}"), out / "teacher", out, FIRST, last_longer=2.0)
    return [out / "teacher", *students]


def study(out: Path, variant: str, num: int) -> dict[str, Any]:
    """Train, draw and measure; returns what is written to out/metrics.json, and writes out/distilled.png."""
    began = time.process_time()
    teacher, *students = train(out, variant)
    real = common.digits("train")
    classifier = train_classifier(*real, 10, held_out=common.digits("test"), steps=600 if variant == "full" else 5)
    moments = lambda images: Moments().add(classifier.look(images)[1])  # noqa: E731
    counts = [int(path.name.removeprefix("steps_")) for path in students]
    models = [(teacher, TEACHER_STEPS), *((teacher, n) for n in counts), *zip(students, counts, strict=True)]
    metrics: dict[str, Any] = {"classifier_accuracy": classifier.accuracy}
    pictures = {}
    for path, steps in models:
        run = Run.open(path)
        sampling = {**run.config["sampling"], "steps": steps}
        images, labels = common.draw(run, num, sampling, named(jax.random.key(0), "sample"))
        name = f"{'teacher' if path == teacher else 'student'}_{steps}"
        metrics[name] = {
            "agreement": agreement(classifier, images, labels),
            "frechet": frechet_distance(moments(images), moments(real[0]), warn=False),
        }
        pictures[name] = images
    metrics["processor_seconds"] = time.process_time() - began
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    shown = {f"teacher_{TEACHER_STEPS}": "teacher, 64", "student_4": "4 steps", "student_2": "2 steps", "student_1": "1 step"}
    sheets = [labelled(tile(pictures[name][:40], columns=5, scale=3), text) for name, text in shown.items()]
    write_image(out / "distilled.png", beside(sheets))
    return metrics


def main() -> str:
    """Run the study and say what it found."""
    given = flags.FLAGS
    out = Path(given.out)
    metrics = study(out, given.variant, given.num)
    rows = [
        f"{name:12s}{row['agreement']:10.3f}{row['frechet']:10.2f}" for name, row in metrics.items() if isinstance(row, dict)
    ]
    lines = [f"{'':12s}{'agreement':>10s}{'Frechet':>10s}", *rows, "", f"picture: {out / 'distilled.png'}"]
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/distilled", "Where runs, distilled.png and metrics.json go.")
    flags.DEFINE_enum("variant", "full", ["full", "tiny"], "tiny: seconds, to see that everything works.")
    flags.DEFINE_integer("num", 1000, "Samples of each model.")
    common.run_program("distilled_digits", main)
