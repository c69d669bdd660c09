"""A real run, as small as one can be: digits of 8x8, a U-Net of eight channels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from diffusion_jax.training.config import apply_overrides, complete

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = {
    "seed": 1,
    "system": {
        "name": "generation",
        "process": {"schedule": "cosine_continuous", "prediction": "v"},
        "network": {
            "name": "unet", "channels": 8, "groups": 4, "multipliers": [1, 2], "num_res_blocks": 1,
            "attention_resolutions": [], "num_heads": 1,
        },
        "num_classes": 10,
    },
    "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 16, "cache": True},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 2, "clip_norm": 1.0},
    "training": {
        "steps": 10, "log_every": 1, "checkpoint_every": 3, "tensorboard": False, "ema": [{"name": "constant", "decay": 0.99}],
    },
    "sampling": {"solver": "ddim", "steps": 2},
}  # fmt: skip


def config(**overrides):
    """The configuration with dotted fields replaced, written with __ for the dots."""
    return apply_overrides(complete(CONFIG), {key.replace("__", "."): value for key, value in overrides.items()})


def recipe(folder: Path, **overrides) -> Path:
    """The configuration as a recipe file."""
    path = folder / "recipe.py"
    path.write_text(f"def get_config():\n    return {config(**overrides)!r}\n")
    return path


def command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"diffusion_jax.{program}", *map(str, arguments)]


def environment(devices: int = 1) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def run(program: str, *arguments: str, devices: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run a program to its end, in a process of its own."""
    return subprocess.run(
        command(program, *arguments), env=environment(devices), cwd=ROOT, timeout=timeout, text=True, capture_output=True
    )


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss, and no step twice."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert len(steps) == len(set(steps)), steps
    return {row["step"]: row["loss"] for row in rows if "loss" in row}
