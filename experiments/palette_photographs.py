"""One model that colours, fills, extends and cleans crops of bundled photographs; half an hour on a CPU.

    python -m experiments.palette_photographs

Trains configs/palette.py:photographs on the mixture of tasks, and measures held-out parts of the photographs, PSNR in dB:
inpainting and uncropping inside the hole against the mean of the known pixels, colorization against grey, JPEG restoration
against the compressed image, by the model's mean seen from pure noise; single samples beside it. Known pixels must return to
the last bit, colours have the luma that was asked, and eight uncroppings in a row stay photographs' colours. What it found is
in docs/systems.md.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from diffusion_jax.data.degradations import TASKS, Jpeg
from diffusion_jax.data.files import write_image
from diffusion_jax.systems import Sampling
from diffusion_jax.systems.conditioners.image import panorama

from . import common
from .common import Restorer, psnr

_OUT = flags.DEFINE_string("out", "runs/palette_photographs", "Where the run, the pictures and metrics.json go.")
_NUM = flags.DEFINE_integer("num", 96, "Held-out images for each task.", lower_bound=8)
_VARIANT = flags.DEFINE_enum("variant", "full", ["full", "tiny"], "tiny: seconds, to see that everything works.")
_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "palette.py"


def baseline(batch: dict[str, np.ndarray]) -> np.ndarray:
    """What needs no model: holes filled with the mean of each image's known pixels, other inputs as they are."""
    missing = batch["missing"] > 127
    known = (batch["degraded"] * ~missing).sum((1, 2)) / np.maximum((~missing).sum((1, 2)), 1)
    return np.where(missing, np.round(known)[:, None, None], batch["degraded"]).astype(np.uint8)


def luma_error(images: np.ndarray, grey: np.ndarray) -> float:
    """Mean absolute difference of lumas, of 255."""
    return float(np.abs(images @ np.array([0.299, 0.587, 0.114]) - grey[..., 0]).mean())


def measured(
    task: str, batch: dict[str, np.ndarray], request: dict[str, np.ndarray], restorer: Restorer
) -> tuple[dict, list[np.ndarray]]:
    """The figures of one task, and its pictures: given, mean, sample, real."""
    mean, sample, real = restorer.regress(request), restorer.sample(request), batch["image"]
    missing = batch["missing"] > 127
    where = missing if missing.any() else None
    figures = {name: psnr(images, real, where) for name, images in
               (("baseline", baseline(batch)), ("mean", mean), ("sample", sample))}  # fmt: skip
    if where is not None:
        figures["known_pixels_changed"] = int((sample != real)[np.broadcast_to(~missing, real.shape)].sum())
    if task == "colorize":
        figures["luma_error"] = luma_error(sample, batch["degraded"])
    return figures, [batch["degraded"], mean, sample, real]


def study(out: Path, variant: str, num: int) -> dict:
    """Train, measure, and write metrics.json and two pictures."""
    run = common.trained(f"{_RECIPE}:photographs{',tiny' if variant == 'tiny' else ''}", str(out / "run"))
    sampling = Sampling.from_config(run.config["sampling"])
    exact = dataclasses.replace(
        run.system, conditioners=[dataclasses.replace(each, keep_luma=True) for each in run.system.conditioners]
    )
    plain, keeping = (Restorer(system, run.params(), sampling) for system in (run.system, exact))
    metrics, rows = {}, []
    for task in TASKS:
        degradation = Jpeg((5, 15)) if task == "jpeg" else task
        batch, request = common.held_out(run, num, degradation=degradation)
        metrics[task], pictures = measured(task, batch, request, plain)
        if task == "colorize":
            metrics[task]["luma_error_kept"] = luma_error(keeping.sample(request), batch["degraded"])
        rows += [np.concatenate(each[:8], 1) for each in pictures]
    wide = np.asarray(panorama(run.system, run.params(), jax.random.key(0), batch["image"][:4], sampling))
    size = batch["image"].shape[1]
    metrics["panorama"] = {
        "deviation_of_the_crops": float(batch["image"][:4].std()),
        "deviation_of_the_last_strip": float(wide[:, :, -size:].std()),
        "mean_of_the_last_strip": float(wide[:, :, -size:].mean()),
        "first_pixels_changed": int((wide[:, :, :size] != batch["image"][:4]).sum()),
    }
    metrics["step"] = run.steps()[-1]
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    grid = np.concatenate([np.concatenate(rows[:8]), np.concatenate(rows[8:])], 1)  # two tasks beside two
    write_image(out / "palette_photographs.png", np.kron(grid, np.ones((2, 2, 1), np.uint8)))
    write_image(out / "palette_panorama.png", np.kron(np.concatenate(list(wide)), np.ones((3, 3, 1), np.uint8)))
    return metrics


def main() -> str:
    """Run the study and print its figures."""
    metrics = study(Path(_OUT.value), _VARIANT.value, _NUM.value)
    return json.dumps(metrics, indent=2)


if __name__ == "__main__":
    common.run_program("palette_photographs", main)
