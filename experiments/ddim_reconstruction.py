"""How well does DDIM carry images to noise and back, what lies between two, and where do a model's bits go? On digits.

    python -m experiments.ddim_reconstruction

A small unconditional model with improved DDPM's objective (configs/digits.py with fewer channels), minutes on two CPU cores.
On the 180 held-out digits of 8x8 pixels it finds

- the squared error, with pixels in [0, 1], of encoding and decoding by DDIM in S steps (Song et al. 2021, table 2, arXiv
  2010.02502, has .014 to .0001 in 10 to 1,000 steps on CIFAR-10);
- interpolations: two digits encoded, spherical steps between their noises, decoded (its figure 6);
- the variational bound term by term, beside that of the exact denoiser of independent Gaussian pixels, the trivial baseline.

Interrupted, it goes on where it was when run again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffusion_jax.data.files import tile, write_image
from diffusion_jax.evaluation.held_out import bound_terms, terms_table
from diffusion_jax.files import write_json
from diffusion_jax.process import Denoised, Denoiser, Process, likelihood
from diffusion_jax.sampling import grids, latents
from diffusion_jax.systems import to_float, to_uint8

from . import common

_OUT = flags.DEFINE_string("out", "runs/ddim_digits", "Where the run, the pictures and metrics.json go.")
_VARIANT = flags.DEFINE_enum("variant", "full", ["full", "tiny"], "tiny: seconds, to see that everything works.")
_RECIPE = Path(__file__).resolve().parent.parent / "configs" / "digits.py"
CHANGES = {
    "system.conditioners": {},
    "sampling.guidance": 1.0,
    # As in the paper: where the cosine chain ends, x0 = (x - sigma * eps) / alpha divides by 5e-5.
    "system.process.schedule": {"name": "linear", "num_steps": 250},
    "system.network.channels": 24,
    "system.network.num_res_blocks": 1,
    "training.steps": 800,
    "training.tensorboard": False,
    "optimizer.learning_rate": 2e-3,
}
STEPS = (10, 50, 250)
DRAWN = 50  # steps of the picture
SHARES = np.linspace(0, 1, 9)
PAIRS = 6


def pixels(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every pixel of uint8 [N, H, W, C], in [-1, 1]; at least half a level."""
    scaled = images / 127.5 - 1
    return scaled.mean(0), np.maximum(scaled.std(0), 1 / 255)


def independent_pixels(process: Process, mean: np.ndarray, std: np.ndarray) -> Denoiser:
    """The exact denoiser of Gaussian pixels that know nothing of each other."""

    def function(x: jax.Array, t: jax.Array) -> Denoised:
        alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
        whitened = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return Denoised(mean + alpha * std**2 * whitened, sigma * whitened)

    return Denoiser(function, process)


def study(out: Path, variant: str) -> dict[str, Any]:
    """Train, measure, draw; returns what is written to out/metrics.json."""
    tiny = variant == "tiny"
    recipe = f"{_RECIPE}:tiny" if tiny else str(_RECIPE)
    changes = {**CHANGES, **({"training.steps": 4, "system.network.channels": 8} if tiny else {})}
    run = common.trained(recipe, out / "run", changes)
    system, params = run.system, run.params(weights="raw")  # a run so short is ahead of its average
    (real, _), (held_out, _) = common.digits("train"), common.digits("test")
    chain = system.process.num_steps
    denoise = system.process.bind(system.network.apply, params["network"], {})

    metrics: dict[str, Any] = {"reconstruction": {}}
    x0 = to_float(jnp.asarray(held_out))
    counts = [count for count in STEPS if count <= chain]
    for count in counts:
        back, noise = jax.jit(lambda x0, count=count: latents.reconstruct(denoise, grids.uniform(count), x0))(x0)
        metrics["reconstruction"][count] = float(jnp.square((back - x0) / 2).mean())
        if count == max(each for each in counts if each <= DRAWN):
            draw_interpolation(out, denoise, held_out, noise, count)

    terms = bound_terms(system, params, run.pipeline("test"), limit=len(held_out))
    fixed = Process(system.process.schedule)
    baseline = jax.jit(
        lambda x0, key: likelihood.bits_per_dim(independent_pixels(fixed, *pixels(real)), x0, key)
    )(x0, jax.random.key(0))  # fmt: skip
    mean, std = pixels(real)
    direct = likelihood.discretized_gaussian_log_likelihood(x0, jnp.asarray(mean), jnp.asarray(2 * np.log(std)))
    metrics["bits_per_dim"] = {
        "model": float(terms.total.mean()),
        "independent_gaussian_pixels": float(-direct.mean() / np.log(2)),
        "independent_gaussian_pixels_by_diffusion": float(baseline.total.mean()),
        "uniform": 8.0,
    }
    draw_terms(out, terms_table(terms), terms_table(jax.tree.map(np.asarray, baseline)))
    write_json(out / "metrics.json", metrics)
    return metrics


def draw_interpolation(out: Path, denoise: Denoiser, images: np.ndarray, noise: jax.Array, steps: int) -> None:
    """A row for each pair: the first image, what lies between the two noises, the second image."""
    chosen = np.random.default_rng(1).choice(len(images), (2, PAIRS), replace=False)
    between = jax.jit(lambda first, second: latents.interpolate(denoise, grids.uniform(steps), first, second, SHARES))
    drawn = np.asarray(to_uint8(jnp.clip(between(*(noise[indices] for indices in chosen)), -1, 1)))
    rows = np.concatenate([images[chosen[0]][None], drawn, images[chosen[1]][None]]).swapaxes(0, 1)
    sheet = tile(rows.reshape(-1, *images.shape[1:]), columns=len(SHARES) + 2, gap=4, scale=5)
    write_image(out / "ddim_interpolation.png", sheet)


def draw_terms(out: Path, model: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> None:
    """Bits per dimension of each step, and their sum from noise to data, of the model and of independent pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    each, sums = figure.subplots(1, 2)
    for name, rows in (("model", model), ("independent Gaussian pixels", baseline)):
        steps = rows[:-1]
        t, bits = [row["t"] for row in steps], np.array([row["bits_per_dim"] for row in steps])
        each.semilogy(t, bits, label=name)
        sums.plot(t, rows[-1]["bits_per_dim"] + np.cumsum(bits[::-1])[::-1], label=name)
    each.set(xlabel="t", ylabel="bits/dim of a step")
    sums.set(xlabel="t", ylabel="bits/dim from noise down to t")
    each.legend()
    figure.savefig(out / "ddim_terms.png", dpi=90)


def main() -> str:
    """Run the study and print what it found."""
    out = Path(_OUT.value)
    metrics = study(out, _VARIANT.value)
    return json.dumps(metrics, indent=2) + f"\npictures: {out}/ddim_interpolation.png, {out}/ddim_terms.png"


if __name__ == "__main__":
    common.run_program("ddim_reconstruction", main)
