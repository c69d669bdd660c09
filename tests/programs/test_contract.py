"""The contract of a system: with its required members and `Samples` alone, it goes through all programs; without, it trains."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.registry import register
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Pixels, Samples, System, to_float
from tests import processes

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = """
def get_config():
    return {{
        "imports": [{file!r}],
        "system": {{"name": {name!r}}},
        "data": {{"source": "digits", "image_size": 8, "channels": 1, "batch_size": 64}},
        "optimizer": {{"name": "adam", "learning_rate": 0.05}},
        "training": {{"steps": 60, "ema": [{{"name": "constant", "decay": 0.9}}], "tensorboard": False}},
    }}
"""


@register("system", "pixelwise_only")
@dataclasses.dataclass(frozen=True)
class Pixelwise:
    """A normal distribution for each pixel, fitted by its likelihood: the required members and nothing else."""

    spec: Spec

    def init(self, key: jax.Array) -> dict[str, Any]:
        return {"pixels": {"mean": jnp.zeros(self.spec.shape), "log_std": jnp.zeros(self.spec.shape)}}

    def init_state(self) -> dict[str, Any]:
        return {}

    def losses(self, params, state, batch, key, *, step, frozen, train):
        mean, log_std = params["pixels"]["mean"], params["pixels"]["log_std"]
        deviation = (to_float(batch["image"]) - mean) / jnp.exp(log_std)
        return {"pixels": ((deviation**2 / 2 + log_std).mean(), {})}

    def check(self, pipeline: Any) -> None:
        pass


@register("system", "pixelwise")
@dataclasses.dataclass(frozen=True)
class PixelwiseSampler(Pixelwise):
    """The same, which can be drawn from."""

    conditioners = ()
    codec = Pixels()

    def check_sampling(self, sampling: Any) -> None:
        pass

    def sample(self, params, key, request, indices, sampling, **more):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), self.spec.shape))(indices)
        return jnp.clip(params["pixels"]["mean"] + jnp.exp(params["pixels"]["log_std"]) * noise, -1, 1)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"diffusion_jax.{program}", *arguments]
    environment = processes.environment(1, PYTHONPATH=str(ROOT))
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", params=["pixelwise", "pixelwise_only"])
def trained(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "recipe.py").write_text(RECIPE.format(file=__file__, name=request.param))
    done = run("train", f"--config={folder / 'recipe.py'}", f"--workdir={folder / 'run'}")
    assert done.returncode == 0, done.stderr
    return request.param, folder


def test_they_are_what_they_say():
    spec = Spec.image(8, 1)
    assert isinstance(PixelwiseSampler(spec), Samples) and not isinstance(Pixelwise(spec), Samples)
    required = {name for name in vars(System) if not name.startswith("_")} | set(System.__annotations__)
    assert {name for name in vars(Pixelwise) if not name.startswith("_")} <= required


@pytest.mark.recipes
def test_a_system_of_required_members_trains_samples_and_is_evaluated(trained):
    name, folder = trained
    sampled = run("sample", f"--workdir={folder / 'run'}", "--num=8", f"--out={folder / 'samples'}")
    if name == "pixelwise_only":
        assert sampled.returncode == 2 and "Pixelwise, which draws nothing" in sampled.stderr, sampled.stderr
        assert sampled.stderr.strip().count("\n") == 0, sampled.stderr
        return
    assert sampled.returncode == 0, sampled.stderr
    drawn = np.stack([np.asarray(Image.open(folder / "samples" / f"{i:06d}.png")) for i in range(8)])
    assert drawn.shape == (8, 8, 8) and drawn[:, :, 0].mean() < 40 < drawn[:, :, 3].mean()  # digits have dark sides
    options = ["--num=64", "--classifier_steps=30", "--noreport", f"--out={folder / 'evaluation'}"]
    evaluated = run("evaluate", f"--workdir={folder / 'run'}", *options)
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert found["held_out_loss"] < 0 and found["frechet_distance"] > 0 and "bits_per_dim" not in found
