"""A run as small as one can be: a system of three convolutions on made images, and programs that train it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import training
from diffusion_jax.registry import register
from diffusion_jax.rng import named
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Labels, Pixels
from diffusion_jax.training import loop
from diffusion_jax.training.config import apply_overrides, complete
from diffusion_jax.training.recipes import split_overrides
from tests import processes

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = {
    "seed": 1,
    "system": {"name": "toy"},
    "data": {"source": {"name": "noise"}, "image_size": 8, "channels": 1, "batch_size": 16, "num_threads": 1},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 2, "clip_norm": 1.0},
    "training": {
        "steps": 10, "log_every": 1, "checkpoint_every": 3, "tensorboard": False, "ema": [{"name": "constant", "decay": 0.99}],
    },
}  # fmt: skip


@register("source", "noise")
class Noise:
    """Random images of ten classes, sorted by class."""

    name, num_classes, class_names = "noise", 10, tuple("0123456789")

    def __init__(self, size: int = 60, split: str = "train") -> None:
        rng = np.random.default_rng({"train": 0, "test": 1}[split])
        self._images = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": 10 * index // len(self)}


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@register("system", "toy")
@dataclasses.dataclass(frozen=True)
class Toy:
    """Predicts the noise in images mixed with it.

    Args:
      noiseless: the noise of an image is the next pixel's value, and the level its label: no key is used, and the loss of
        an image does not depend on the batch it is in.
      bad_label: batches whose first label this is have a loss that is not a number.
    """

    spec: Spec
    width: int = 16
    noiseless: bool = False
    bad_label: int = -1

    conditioners = (Labels(num_classes=10, drop=0.0),)
    codec = Pixels()

    def init(self, key: jax.Array) -> dict:
        channels = self.spec.channels
        sizes = {"stem": (channels, self.width), "middle": (self.width, self.width), "out": (self.width, channels)}
        params = {"level": {"kernel": jax.random.normal(named(key, "level"), (32, self.width))}}
        for name, size in sizes.items():
            kernel = jax.random.normal(named(key, name), (3, 3, *size)) / 3 / size[0] ** 0.5
            params[name] = {"kernel": kernel, "bias": jnp.zeros(size[1])}
        return {"network": params}

    def init_state(self) -> dict:
        return {"seen": jnp.zeros((), jnp.int32)}

    def _network(self, params: dict, x: jax.Array, t: jax.Array) -> jax.Array:
        params = params["network"]
        level = jnp.sin(t[:, None] * jnp.arange(1.0, 33.0)) @ params["level"]["kernel"]
        h = jax.nn.silu(_conv(x, params["stem"]["kernel"]) + params["stem"]["bias"] + level[:, None, None])
        h = h + jax.nn.silu(_conv(h, params["middle"]["kernel"]) + params["middle"]["bias"])
        return _conv(h, params["out"]["kernel"]) + params["out"]["bias"]

    def losses(self, params: dict, state: dict, batch: dict, key: jax.Array, **_: Any) -> dict:
        x = batch["image"].astype(jnp.float32) / 127.5 - 1
        noise, t = jax.random.normal(named(key, "noise"), x.shape), jax.random.uniform(named(key, "t"), x.shape[:1])
        if self.noiseless:
            noise, t = jnp.roll(x, 1, axis=1), (batch["label"] + 0.5) / 10
        mixed = (1 - t)[:, None, None, None] * x + t[:, None, None, None] * noise
        per_example = ((self._network(params, mixed, t) - noise) ** 2).mean((1, 2, 3))
        per_example = jnp.where(batch["label"][0] == self.bad_label, jnp.nan, per_example)
        log_snr, seen = 2 * jnp.log((1 - t) / t), {"seen": state["seen"] + len(x)}
        aux = {"state": seen, "per_example": per_example, "log_snr": log_snr, "metrics": {"time": t.mean()}}
        return {"network": (per_example.mean(), aux)}

    def sample(self, params: dict, key: jax.Array, request: dict, indices: jax.Array, sampling: Any, **_: Any) -> jax.Array:
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), self.spec.shape))(indices)
        return jnp.clip(noise - self._network(params, noise, (request["label"] + 1) / 10), -1, 1)

    def check(self, pipeline: Any) -> None:
        pass

    def check_sampling(self, sampling: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Bare:
    """A point on the plane that seeks a target: the required members, and nothing in aux."""

    spec: Spec = Spec((1,), "vector")

    target = (3.0, 4.0)

    def init(self, key):
        return {"point": {"w": jnp.array([1.0, 0.0])}}

    def init_state(self):
        return {}

    def losses(self, params, state, batch, key, *, step, frozen, train):
        return {"point": (-params["point"]["w"] @ jnp.array(self.target), {})}

    def check(self, pipeline):
        pass


def config(**overrides: Any) -> dict:
    """The configuration with dotted fields replaced, written with __ for the dots."""
    return apply_overrides(complete(CONFIG), {key.replace("__", "."): value for key, value in overrides.items()})


_FREE = (
    "log_every", "checkpoint_every", "keep_last", "keep_every", "grid_every", "grid_samples", "eval_every", "eval_examples",
    "tensorboard", "steps",
)  # fmt: skip
_MADE: dict[str, training.Program] = {}


class Shared(training.Program):
    """A program that computes what an earlier one does: it has the same parts, compiled once."""

    def __getattribute__(self, name: str) -> Any:
        compiled = ("step", "lowered", "_init", "_traced", "_batch", "_zeros")
        return getattr(self._first, name) if name in compiled else super().__getattribute__(name)


def prepare(devices: int = 1, **overrides: Any) -> training.Program:
    """The program of the configuration on the first devices."""
    return _shared(config(**overrides), devices)


def _shared(complete: dict, devices: int) -> training.Program:
    free = _FREE if complete["optimizer"].get("decay") == "constant" else _FREE[:-1]
    fixed = {field: value for field, value in complete["training"].items() if field not in free}
    key = json.dumps([devices, {**complete, "training": fixed}], sort_keys=True)
    if key not in _MADE:
        _MADE[key] = training.prepare(complete, jax.devices()[:devices])
    first = _MADE[key]
    program = Shared(complete, first.data, first.pipeline, first.mesh, first.train_step, first.target)
    object.__setattr__(program, "_first", first)
    return program


def train(workdir: Path, devices: int = 1, allow: bool = False, **overrides: Any) -> dict:
    """Train on the first devices."""
    with mock.patch.object(loop, "prepare", lambda complete: _shared(complete, devices)):
        return training.train(config(**overrides), workdir, allow_other_data=allow)


def recipe(folder: Path, **overrides: Any) -> Path:
    """The configuration as a recipe file."""
    path = folder / "recipe.py"
    given = {key: value for key, value in config(**overrides).items() if value}
    given["imports"] = ["tests.training.tiny"]
    path.write_text(f"def get_config():\n    return {given!r}\n")
    return path


def command(program: str, *arguments: Any) -> list[str]:
    """The command line of a program."""
    return [sys.executable, "-m", f"diffusion_jax.{program}", *map(str, arguments)]


def environment(devices: int = 1) -> dict[str, str]:
    """Of a program that sees so many devices."""
    return processes.environment(devices, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")


def run(program: str, *arguments: Any, devices: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a program to its end, in a process of its own."""
    return subprocess.run(
        command(program, *arguments), env=environment(devices), cwd=ROOT, timeout=timeout, text=True, capture_output=True
    )


def work(recipe: Any, workdir: Any, *arguments: str, **flags: Any) -> str:
    """What the program `train` prints, in this process."""
    from diffusion_jax import train as program  # recipes import this file in programs that define the same flags

    _, overrides = split_overrides(["train", *arguments])
    values = {"config": str(recipe), "workdir": str(workdir), "dry_run": False}
    return program._work({**values, **flags}, overrides)


def rows(workdir: Path) -> list[dict]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss, and no step twice."""
    found = rows(workdir)
    steps = [row["step"] for row in found]
    assert steps == sorted(set(steps)), steps
    return {row["step"]: row["loss"] for row in found if "loss" in row}
