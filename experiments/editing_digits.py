"""Edit digits with a model that was trained for nothing but to draw them: SDEdit, ILVR, RePaint and interpolation.

    python -m experiments.editing_digits

The model is configs/progressive_distillation.py:digits_teacher, on scikit-learn's 8x8 digits, and edits held-out ones without
being told their class. A small classifier, trained on real digits, says how often an edited digit still is the digit that
it was: less, the larger SDEdit's strength; and how often a digit whose lower half is missing is completed to what it was,
by plain replacement and by RePaint's returns in time, beside the mean of all digits as fill.

Interrupted, it goes on where it was when run again. What it found is in docs/editing.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffusion_jax.data.files import tile, write_image
from diffusion_jax.features import agreement, train_classifier
from diffusion_jax.process import Denoiser
from diffusion_jax.rng import named
from diffusion_jax.sampling import editing, grids, latents, solvers
from diffusion_jax.systems import Sampling, to_float, to_uint8
from diffusion_jax.training.previews import labelled

from . import common

_OUT = flags.DEFINE_string("out", "runs/editing", "Where the run, editing.png and metrics.json go.")
_VARIANT = flags.DEFINE_enum("variant", "full", ["full", "tiny"], "tiny: seconds, to see that everything works.")
_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "progressive_distillation.py"
_SHOWN = 8
STRENGTHS, FACTORS = (0.3, 0.5, 0.7, 0.9), (2, 4)

Work = Callable[[Denoiser, jax.Array], jax.Array]


def edits(variant: str) -> dict[str, Work]:
    """What is done to images [B, 8, 8, 1], by name."""
    key, ancestral = jax.random.key(0), solvers.ddpm()
    grid = grids.trailing(50 if variant == "full" else 4)
    missing = jnp.zeros((8, 8, 1)).at[4:].set(1.0)
    found: dict[str, Work] = {}
    for strength in STRENGTHS:
        found[f"SDEdit {strength}"] = lambda d, x, s=strength: editing.sdedit(d, ancestral, grid, key, x, s)
    for factor in FACTORS:
        found[f"ILVR {factor}"] = lambda d, x, f=factor: editing.ilvr(d, ancestral, grid, key, x, f)
    found["masked"] = lambda d, x: (1 - missing) * x
    for name, resamples in (("replace", 1), ("RePaint", 5)):
        found[name] = lambda d, x, r=resamples: editing.repaint(d, ancestral, grid, key, x, missing, 5, r)
    found["between"] = lambda d, x: _between(d, grid, x)
    return found


def _between(denoise: Denoiser, grid: Any, x: jax.Array) -> jax.Array:
    """Half of the way from each digit to the next."""
    noise = latents.encode(denoise, grid, x)
    return latents.decode(denoise, grid, latents.slerp(noise, jnp.roll(noise, -1, 0), 0.5))


def study(out: Path, variant: str) -> dict[str, Any]:
    """Train, edit and measure; returns what is written to out/metrics.json, and writes out/editing.png."""
    suffix = ",tiny" if variant == "tiny" else ""
    run = common.trained(f"{_RECIPE}:digits_teacher{suffix}", out / "model")
    real, (images, labels) = common.digits("train"), common.digits("test")
    classifier = train_classifier(*real, 10, held_out=(images, labels), steps=600 if variant == "full" else 5)
    request = {"label": np.full(len(images), 10, np.int32)}  # the null class: no digit is asked for
    sampling = Sampling(threshold="none")

    def edited(work: Work) -> np.ndarray:
        def draw(params: Any, x: jax.Array) -> jax.Array:
            denoise = run.system.denoiser(params, named(jax.random.key(0), "edit"), request, jnp.arange(len(images)), sampling)
            return to_uint8(work(denoise, x))

        return np.asarray(jax.jit(draw)(run.params(), to_float(images)))

    rows, metrics = {"held out": images}, {"held out": {"same_digit": classifier.accuracy}}
    for name, work in edits(variant).items():
        rows[name] = edited(work)
        metrics[name] = {"same_digit": agreement(classifier, rows[name], labels)}
    filled = images.copy()
    filled[:, 4:] = real[0].mean(0).round()[4:]
    metrics["mean fill"] = {"same_digit": agreement(classifier, filled, labels)}
    for name, result in (("mean fill", filled), ("replace", rows["replace"]), ("RePaint", rows["RePaint"])):
        metrics[name]["known_exact"] = bool((result[:, :4] == images[:, :4]).all())
        metrics[name]["hole_error"] = float(np.square((result[:, 4:] - images[:, 4:].astype(float)) / 255).mean())
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    sheets = [labelled(tile(row[:_SHOWN], columns=1, scale=6), name) for name, row in rows.items()]
    write_image(out / "editing.png", np.concatenate(_of_one_width(sheets), axis=1))
    return metrics


def _of_one_width(sheets: list[np.ndarray], width: int = 74) -> list[np.ndarray]:
    """Columns padded with white, so that their names have room."""
    return [np.pad(sheet, ((0, 0), (0, max(0, width - sheet.shape[1])), (0, 0)), constant_values=255) for sheet in sheets]


def main() -> str:
    """Run the study and say what it found."""
    out = Path(_OUT.value)
    metrics = study(out, _VARIANT.value)
    lines = [f"{name:12s}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()) for name, row in metrics.items()]
    return "\n".join([*lines, "", f"picture: {out / 'editing.png'}"])


if __name__ == "__main__":
    common.run_program("editing_digits", main)
