"""EDM's preconditioning, training levels and sampler against the score SDE's, on bundled digits at equal cost.

    python -m experiments.edm_table

Two networks, alike in all but the column of the design table (Karras et al. 2022, arXiv 2206.00364), are trained for the same
number of steps on the 8x8 digits of scikit-learn: the VP column's eps prediction and EDM's. Each is sampled by several samplers
with as many evaluations of the network. A classifier trained on the same digits says how often it sees the digit that was
asked for, and how far its features of samples are from those of real images. The recipe is configs/edm.py:digits.

Interrupted, it goes on where it was when run again. What it found is in docs/systems.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from diffusion_jax import training
from diffusion_jax.features import TrainedClassifier, agreement, train_classifier
from diffusion_jax.inference import Run
from diffusion_jax.metrics.frechet import Moments, frechet_distance
from diffusion_jax.process import edm_design
from diffusion_jax.sampling import edm_design as sampling_design
from diffusion_jax.training.recipes import load_recipe

from . import common

_OUT = flags.DEFINE_string("out", "runs/edm_table", "Where runs, table.json and edm.png go.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Of training, of each network.")
_NUM = flags.DEFINE_integer("num", 1000, "Samples of each row.")
_BUDGETS = flags.DEFINE_list("evaluations", ["19", "39"], "Of the network, for each sample; odd. The first is shown.")
_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "edm.py"

Row = dict[str, Any]


def samplers(column: str, evaluations: int) -> dict[str, dict[str, Any]]:
    """By name, each with that many evaluations: EDM's steps with Euler and with Heun, and before them the VP column's own."""
    vp, edm = sampling_design.column("vp"), sampling_design.column("edm")
    own = {"VP steps, Euler in the VP's time": {**vp, "steps": evaluations}} if column == "vp" else {}
    return own | {
        "EDM steps, Euler": {**edm, "solver": "euler", "steps": evaluations},
        "EDM steps, Heun": {**edm, "steps": (evaluations + 1) // 2},
    }


def train(column: str, out: Path, steps: int) -> Run:
    """The run of a column, trained unless it is already."""
    config = load_recipe(f"{_RECIPE}:digits", {"training.steps": steps})
    fields = edm_design.column(column)
    config["system"]["process"] = fields.pop("process")
    config["system"]["objective"].update(fields)
    training.train(config, out / column)
    return Run.open(out / column)


def measured(classifier: TrainedClassifier, images: np.ndarray, labels: np.ndarray, real: Moments) -> Row:
    """How often the classifier sees the class, and how far its features are from the real ones."""
    moments = Moments().add(classifier.look(images)[1])
    return {"agreement": agreement(classifier, images, labels), "frechet": frechet_distance(moments, real, warn=False)}


def picture(rows: list[np.ndarray], path: Path, scale: int = 5) -> None:
    """One line of digits for each row, and a white line between."""
    lines = []
    for images in rows:
        big = images[..., 0].repeat(scale, 1).repeat(scale, 2)
        lines += [np.concatenate([np.pad(image, ((0, 0), (0, 2)), constant_values=255) for image in big], axis=1)]
        lines += [np.full((4, lines[0].shape[1]), 255, np.uint8)]
    Image.fromarray(np.concatenate(lines[:-1])).save(path, optimize=True)


def study(out: Path, steps: int, num: int, budgets: list[int]) -> list[Row]:
    """Train, sample and measure; returns the rows of the table."""
    out.mkdir(parents=True, exist_ok=True)
    runs = {column: train(column, out, steps) for column in ("vp", "edm")}
    (images, labels), (held_out, held_labels) = common.digits("train"), common.digits("test")
    classifier = train_classifier(images, labels, 10, held_out=(held_out, held_labels))
    real = Moments().add(classifier.look(images)[1])
    table = [
        {"network": "real, held out", "sampler": "", "evaluations": 0, **measured(classifier, held_out, held_labels, real)}
    ]
    shown = [held_out[np.concatenate([np.flatnonzero(held_labels == digit)[:2] for digit in range(10)])]]
    order = np.concatenate([[digit, digit + 10] for digit in range(10)])
    for evaluations in budgets:
        for column in ("vp", "edm"):
            for name, sampling in samplers(column, evaluations).items():
                drawn, classes = common.draw(runs[column], num, sampling, jax.random.key(0))
                figures = measured(classifier, drawn, classes, real)
                row = {"network": column, "sampler": name, "evaluations": evaluations, **figures}
                table.append(row)
                sys.stdout.write(shown_row(row) + "\n")
                sys.stdout.flush()
                if evaluations == budgets[0]:
                    shown.append(drawn[order])
    picture(shown, out / "edm.png")
    (out / "table.json").write_text(json.dumps(table, indent=2) + "\n")
    return table


def shown_row(row: Row) -> str:
    """A line of the table."""
    return "{network:16s}{sampler:36s}{evaluations:4d}  agreement {agreement:.3f}  frechet {frechet:.2f}".format(**row)


def main() -> str:
    """Run the study and print its table."""
    table = study(Path(_OUT.value), _STEPS.value, _NUM.value, [int(budget) for budget in _BUDGETS.value])
    return "\n".join(["", *map(shown_row, table)])


if __name__ == "__main__":
    common.run_program("edm_table", main)
