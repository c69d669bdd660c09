"""Tiny systems and batches."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import systems
from diffusion_jax.spec import Spec, size_of
from diffusion_jax.systems import Diffusion
from diffusion_jax.systems.parts import build_conditioners
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training.checkpoints import Checkpointer
from diffusion_jax.training.state import TrainState
from tests import processes

NETWORK = {
    "name": "unet",
    "channels": 8,
    "multipliers": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "groups": 4,
}
PROCESS = {"schedule": "cosine_continuous", "prediction": "v"}


LABELS = {"labels": {"num_classes": 4}}


def make_generation(size: Any = 8, labels: Any = LABELS["labels"], more: Any = (), channels: int = 1, **fields) -> Diffusion:
    """A class-conditional system of grey images; labels of None make it unconditional."""
    spec, conditioners = Spec.image(size, channels), {"labels": labels, **dict(more)}
    return Diffusion(**{"spec": spec, "process": PROCESS, "network": NETWORK, "conditioners": conditioners, **fields})


def make_super_resolution(size: Any = 16, low_res: Any = None, **fields) -> Diffusion:
    """A class-conditional system from 8x8 to 16x16 grey images."""
    return make_generation(size, more={"low_res": {"size": 8, **(low_res or {})}}, **fields)


NO_PARAMS: dict[str, Any] = {"network": {}}
"""Of a system of `make_function`."""


def zeros(x: jax.Array, noise: jax.Array, cond: Any) -> jax.Array:
    """The function of a network that says nothing."""
    return 0 * x


def make_function(
    function: Callable[..., jax.Array] = zeros, size: Any = 8, conditioners: Any = (), channels: int = 1, **fields
) -> Diffusion:
    """A system whose network is a function (x, noise, cond) -> output of whatever the conditioners give."""
    spec = Spec.image(size, channels)
    built = build_conditioners(conditioners, spec)
    network = FunctionNetwork(function, spec.shape, {key: None for each in built for key in each.keys})
    return Diffusion(**{"spec": spec, "process": PROCESS, "network": network, "conditioners": built, **fields})


def fed_in_training(batch: Any, *, seed: int = 0, train: bool = True, **fields) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """What a system of `make_function` feeds its network for a batch: (x, noise level, cond)."""
    seen: list = []

    def function(*given: Any) -> jax.Array:
        seen.append(given)
        return 0 * given[0]

    loss_of(make_function(function, **fields), NO_PARAMS, batch, jax.random.key(seed), train=train)
    return seen[-1]


def low_res_of(system: Diffusion) -> Any:
    """The conditioner of a system's low-resolution images."""
    return next(conditioner for conditioner in system.conditioners if conditioner.name == "low_res")


def loss_of(
    system: Any, params: Any, batch: Any, key: jax.Array, *, state: Any = None, train: bool = True, **more: Any
) -> tuple:
    """(value, aux) of a system's only group of parameters."""
    state = system.init_state() if state is None else state
    given = {"step": jnp.zeros((), jnp.int32), "frozen": {}, **more}
    return system.losses(params, state, batch, key, train=train, **given)["network"]


def randomize(params: Any, scale: float = 0.3, seed: int = 0) -> Any:
    """Parameters without zeros: fresh output layers are zero, and would hide what they are fed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32), params)


def start(system: Any, seed: int = 0) -> Any:
    """Fresh parameters, compiled: op by op takes seconds."""
    return jax.jit(system.init)(jax.random.key(seed))


def make_batch(size: Any = 16, count: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Random grey images and labels of 4 classes."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, *size_of(size), 1), np.uint8),
        "label": rng.integers(0, 4, count).astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class FunctionNetwork:
    """A network without parameters: any function (x, noise, cond) -> output."""

    function: Callable[..., jax.Array]
    shape: tuple[int, ...]
    cond_spec: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        return Spec(self.shape)

    def init(self, key: jax.Array) -> dict:
        return {}

    def apply(self, params: Any, x: jax.Array, noise: jax.Array, cond: Any = None, **_: Any) -> jax.Array:
        return self.function(x, noise, cond)


def gaussian_x0(mean: float, std: float, schedule: Any) -> Callable[..., jax.Array]:
    """E[x0 | x_t] of independent Gaussian pixels, as a network of the noise level 1000 t."""

    def function(x: jax.Array, noise: jax.Array, cond: Any) -> jax.Array:
        alpha, sigma = schedule.alpha_sigma(jnp.asarray(noise / 1000)[:, None, None, None])
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return function


def make_run(workdir: Any, kind: str = "base", **system: Any) -> str:
    """A run of bundled digits with random weights at step 1: "base" draws 8x8, "sr" takes them to 16x16."""
    classes = {"num_classes": 10}
    asked = classes if system.get("name") == "noisy_classifier" else {"conditioners": {"labels": classes}}
    config: dict[str, Any] = {
        "system": {"process": PROCESS, "network": NETWORK, **asked, **system},
        "data": {
            "source": {"name": "digits"},
            "image_size": 8 if kind == "base" else 16,
            "channels": 1,
            "resize": "bicubic",
            "batch_size": 8,
        },
        "sampling": {"solver": "ddim", "steps": 2},
    }
    if kind == "sr":
        config["system"]["conditioners"]["low_res"] = {"size": 8}
        config["sampling"]["aug_level"] = 0.1
    config = configs.complete(config)
    configs.claim(workdir, config)
    built = systems.from_config(config)
    params = randomize(jax.jit(built.init)(jax.random.key(0)), 0.1)
    averages = {average.label: params for average in emas.from_config(config["training"]["ema"])}
    one = jnp.ones((), jnp.int32)
    checkpointer = Checkpointer(workdir)
    checkpointer.save(TrainState(one, params, averages, {}, built.init_state(), 0 * one), 1, config)
    checkpointer.close()
    return str(workdir)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The workdirs of tiny runs: base, sr, and unconditional (a chain)."""
    root = tmp_path_factory.mktemp("runs")
    chain = {"process": {"schedule": {"name": "cosine", "num_steps": 20}, "prediction": "eps"}, "conditioners": {}}
    return {
        "base": make_run(root / "base"),
        "sr": make_run(root / "sr", "sr"),
        "unconditional": make_run(root / "unconditional", **chain),
    }


def start_program(*arguments: str, program: str = "sample") -> subprocess.Popen:
    """The program in a process of its own, on one device."""
    command = [sys.executable, "-m", f"diffusion_jax.{program}", *arguments]
    return subprocess.Popen(command, env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
