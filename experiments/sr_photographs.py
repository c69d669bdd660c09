"""Super-resolution of bundled photographs, 6 -> 24 pixels, beside bicubic: a quarter of an hour on a laptop's CPU.

    python -m experiments.sr_photographs

Trains configs/sr3.py:photographs (continuous noise levels, piecewise uniform), and measures held-out parts of the photographs:
PSNR of the model's mean seen from pure noise against bicubic enlargement; sharpness (gradient energy, the real images' being
1) of single samples; consistency (MSE in [-1, 1] between the reduced sample and what was asked); and one checkpoint on several
inference schedules. What it found is in docs/systems.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from absl import flags

from diffusion_jax.data.degradations import resize
from diffusion_jax.data.files import write_image
from diffusion_jax.systems import Sampling

from . import common
from .common import Restorer, psnr, sharpness

_OUT = flags.DEFINE_string("out", "runs/sr_photographs", "Where the run, the picture and metrics.json go.")
_NUM = flags.DEFINE_integer("num", 128, "Held-out images.", lower_bound=8)
_VARIANT = flags.DEFINE_enum("variant", "full", ["full", "tiny"], "tiny: seconds, to see that everything works.")
_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "sr3.py"
# Numbers of steps and last betas: square roots of betas evenly spaced, down to about the trained last level.
_LISTS = {"100 steps": 0.3, "25 steps": 0.8, "10 steps": 0.98}


def enlarged(low_res: np.ndarray, size: int) -> np.ndarray:
    """Bicubic enlargement of bytes."""
    up = np.stack([resize(image.astype(np.float32), (size, size), "bicubic") for image in low_res])
    return np.clip(np.round(up), 0, 255).astype(np.uint8)


def _consistency(images: np.ndarray, low_res: np.ndarray) -> float:
    reduced = [resize(image.astype(np.float32), low_res.shape[1:3]) for image in images]
    return float(np.mean(((np.stack(reduced) - low_res) / 127.5) ** 2))


def study(out: Path, variant: str, num: int) -> dict:
    """Train, measure, and write metrics.json and sr_photographs.png."""
    run = common.trained(f"{_RECIPE}:photographs{',tiny' if variant == 'tiny' else ''}", str(out / "run"))
    batch, request = common.held_out(run, num)
    real, low_res = batch["image"], request["low_res"]
    bicubic, draws = enlarged(low_res, real.shape[1]), {}
    for name, last in _LISTS.items():
        steps = int(name.split()[0])
        schedule = {"name": "quadratic", "num_steps": steps, "beta_start": 1e-6, "beta_end": last}
        restorer = Restorer(run.system, run.params(), Sampling(solver="ddpm", steps=steps, schedule=schedule))
        draws[name] = restorer.sample(request)
    mean = restorer.regress(request)
    sample = draws["100 steps"]
    metrics = {
        "psnr": {"bicubic": psnr(bicubic, real), "mean": psnr(mean, real)} | {n: psnr(x, real) for n, x in draws.items()},
        "sharpness": {
            name: sharpness(images) / sharpness(real) for name, images in {"bicubic": bicubic, "mean": mean, **draws}.items()
        },
        "consistency": {name: _consistency(images, low_res) for name, images in {"bicubic": bicubic, **draws}.items()},
        "step": run.steps()[-1],
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    low = np.kron(low_res, np.ones((1, *(real.shape[1] // low_res.shape[1],) * 2, 1), np.uint8))
    rows = [np.concatenate(each[:10], 1) for each in (low, bicubic, mean, sample, real)]
    write_image(out / "sr_photographs.png", np.kron(np.concatenate(rows), np.ones((2, 2, 1), np.uint8)))
    return metrics


def main() -> str:
    """Run the study and print its figures."""
    return json.dumps(study(Path(_OUT.value), _VARIANT.value, _NUM.value), indent=2)


if __name__ == "__main__":
    common.run_program("sr_photographs", main)
