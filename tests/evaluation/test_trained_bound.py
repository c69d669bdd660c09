"""A model trained on real digits says more of held-out ones than pixels that know nothing of each other."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation import bits_per_dim
from diffusion_jax.inference import Run
from diffusion_jax.process import likelihood
from diffusion_jax.systems import to_float
from tests.tiny_systems import start_program

RECIPE = Path(__file__).resolve().parent.parent.parent / "configs" / "digits.py"
SMALL = {
    "system.conditioners": {}, "system.network.channels": 16, "system.network.num_res_blocks": 1,
    "system.process.schedule.num_steps": 1000, "system.objective.weighting": "vlb", "system.objective.times": "importance",
    "system.objective.vlb_weight": 0.0, "optimizer.learning_rate": 2e-3, "training.steps": 1200,
    "training.ema": [{"name": "constant", "decay": 0.99}],
    "training.tensorboard": False, "sampling.guidance": 1.0,
}  # fmt: skip
MARGIN = 0.05  # bits/dim; found: 4.48, and 4.60 of the baseline


@pytest.mark.slow
def test_a_trained_model_beats_independent_pixels_in_bits_per_dim(tmp_path):
    """On the 8x8 digits, after 1,200 steps of importance-sampled L_vlb; the baseline is a Gaussian fitted to each pixel.

    A hard one: pixels that are always black cost it nothing, and the chain more than a bit each.
    """
    fields = [f"--config.{name}={value}" for name, value in SMALL.items()]
    trainer = start_program(f"--config={RECIPE}", f"--workdir={tmp_path}", *fields, program="train")  # on one device
    _, errors = trainer.communicate()
    assert trainer.returncode == 0, errors
    run = Run.open(tmp_path)
    train, test = run.pipeline("train"), run.pipeline("test")
    found = bits_per_dim(run.system, run.params(), test, limit=180)
    real, held_out = (np.asarray(to_float(next(iter(part.one_pass(5000)))["image"])) for part in (train, test))
    log_variance = 2 * np.log(np.maximum(real.std(0), 1 / 255))
    log_p = jax.jit(likelihood.discretized_gaussian_log_likelihood)(jnp.asarray(held_out), real.mean(0), log_variance)
    baseline = float(-log_p.mean() / np.log(2))
    print(f"bits/dim: model {found['bits_per_dim']:.3f}, independent Gaussian pixels {baseline:.3f}, uniform 8")
    assert found["bits_per_dim"] < baseline - MARGIN, (found, baseline)
    assert baseline < 8
