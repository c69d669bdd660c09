"""A recipe outside of the package that registers a source, a network, a weighting and a system: all programs know them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import processes
from tests.programs.test_extending import ROOT

RECIPE = '''
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models import Network
from diffusion_jax.registry import register
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Diffusion
from diffusion_jax.values import Count, NonNegative


@register("source", "stripes")
class Stripes:
    """Stripes across or along, and which."""

    def __init__(self, num_examples: Count = 64, split: str = "train"):
        self.num_examples, self.split = num_examples, split
        self.name, self.num_classes, self.class_names = "stripes", 2, ("across", "along")

    def __len__(self):
        return self.num_examples if self.split == "train" else self.num_examples // 4

    def __getitem__(self, index):
        image = np.where(np.arange(8) % 4 < 2, 0, 255)[:, None, None] * np.ones((1, 8, 1))
        return {"image": (image if index % 2 else image.transpose(1, 0, 2)).astype(np.uint8), "label": index % 2}


class Dots(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, noise, cond, train=False):
        h = nn.Conv(self.width, (3, 3), name="in")(x) + nn.Dense(self.width, name="noise")(noise[:, None])[:, None, None]
        h = h + nn.Embed(3, self.width, name="label")(cond["label"])[:, None, None]
        return nn.Conv(x.shape[-1], (3, 3), name="out")(nn.silu(h))


@register("network", "dots")
def dots(image_size: Count, width: Count = 8, num_classes: Count = 2, null_class: bool = True, in_channels: Count = 1):
    """Two convolutions."""
    spec = Spec.image(image_size, in_channels)
    label = jax.ShapeDtypeStruct((), jnp.int32)
    return Network(Dots(width), spec, {"label": label})


@register("weighting", "late")
def late(power: NonNegative = 0.5):
    return lambda process, t: jnp.asarray(t) ** power


@register("system", "striped")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Striped(Diffusion):
    """A diffusion of one's own name."""


def get_config():
    return {
        "system": {
            "name": "striped",
            "process": {"schedule": "cosine_continuous", "prediction": "v"},
            "network": {"name": "dots", "width": 4},
            "conditioners": {"labels": {"num_classes": 2}},
            "objective": {"weighting": {"name": "late", "power": 0.25}},
        },
        "data": {"source": {"name": "stripes", "num_examples": 32}, "image_size": 8, "channels": 1, "batch_size": 8},
        "training": {"steps": 4, "checkpoint_every": 2, "log_every": 1, "ema": [{"name": "constant", "decay": 0.9}]},
        "sampling": {"solver": "ddim", "steps": 2},
    }
'''


def program(folder, name, *arguments):
    command = [sys.executable, "-m", f"diffusion_jax.{name}", *arguments]
    environment = processes.environment(1, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.recipes
def test_train_resume_sample_evaluate_and_sweep(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "striped.py").write_text(RECIPE)
    program(tmp_path, "train", "--config=mine/striped.py", "--workdir=run", "--config.training.steps=2")
    resumed = program(tmp_path, "train", "--config=run/config.json", "--workdir=run", "--config.training.steps=4")
    assert "Resuming at step 2 of 4" in resumed.stderr
    (recorded,) = json.loads((tmp_path / "run" / "config.json").read_text())["imports"]
    assert recorded["file"] == str(tmp_path / "mine" / "striped.py") and len(recorded["sha256"]) == 16
    program(tmp_path, "sample", "--workdir=run", "--labels=0,1", "--num=4", "--out=drawn")
    assert json.loads((tmp_path / "drawn" / "labels.json").read_text()) == [0, 1, 0, 1]
    program(tmp_path, "evaluate", "--workdir=run", "--num=8", "--guidance=1,2", "--metrics=loss", "--noreport")
    rows = (tmp_path / "run" / "evaluation" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 2
    # The recipe moves: said, and said how to go on.
    (tmp_path / "mine" / "striped.py").rename(tmp_path / "striped.py")
    command = [sys.executable, "-m", "diffusion_jax.sample", "--workdir=run", "--num=4", "--out=again"]
    environment = processes.environment(1, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "striped.py; say where it is now with --import=FILE" in done.stderr
    program(tmp_path, "sample", "--workdir=run", "--num=4", "--out=again", "--import=striped.py")
