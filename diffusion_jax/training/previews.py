"""What a run shows of itself along the way: grids of samples, and the held-out loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.data import Data
from diffusion_jax.data.files import beside, by_class, tile, write_image
from diffusion_jax.errors import ConfigError
from diffusion_jax.models import activation_sharding
from diffusion_jax.rng import named
from diffusion_jax.systems import Samples, Sampling, System, request_of
from diffusion_jax.training.mesh import batch_sharding, batch_shards, numeric, replicated
from diffusion_jax.training.metrics import writing
from diffusion_jax.training.program import Program
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import by_group, losses_of

_LOOKED_AT = 4  # shuffled examples for each that is shown


def labelled(sheet: np.ndarray, text: str) -> np.ndarray:
    """Put a line of text above a picture: uint8 [H, W, C] -> [H + 14, W, C]."""
    strip = Image.new("L", (sheet.shape[1], 14), 255)
    ImageDraw.Draw(strip).text((2, 1), text, fill=0)
    return np.concatenate([np.asarray(strip)[..., None].repeat(sheet.shape[-1], -1), sheet])


def fixed_batch(data: Data, count: int) -> dict[str, np.ndarray]:
    """Return the same few shuffled examples on every process, as many of each class as there are, as far as that goes."""
    total = len(data.source("train"))
    batch = numeric(data.pipeline("train", batch_size=min(_LOOKED_AT * count, total)).batch(0))
    labels = batch.get("label", np.zeros(len(batch["image"]), int))
    before = np.array([np.sum(labels[:row] == label) for row, label in enumerate(labels)])  # of the same class
    chosen = np.lexsort((labels, before))[:count]
    return {name: values[chosen] for name, values in batch.items()}


def check_grids(system: System) -> None:
    """Raise a `ConfigError` if a system draws no images, of which grids are made."""
    if not isinstance(system, Samples):
        raise ConfigError(f"the system {type(system).__name__} draws nothing: set training.grid_every to 0")
    if system.spec.kind != "image":
        raise ConfigError(f"grids show images, and the run's data are {system.spec}: set training.grid_every to 0")


class GridWriter:
    """A writer of `workdir`/grids/step_N.png: a fixed set of samples, drawn from several sets of weights side by side.

    Where there are few classes each row is one.

    Args:
      system: what is sampled.
      sampling: how.
      batch: whose conditioning is used, whichever process asks: it must be the same on every process.
      mesh: the devices share the samples where their number divides.

    Raises:
      ConfigError: the system draws no images, or not so.
    """

    def __init__(
        self, workdir: str | Path, system: Any, sampling: Sampling, batch: Mapping[str, Any], seed: int, mesh: jax.sharding.Mesh
    ) -> None:
        check_grids(system)
        system.check_sampling(sampling)
        self._path = Path(workdir) / "grids"
        key, count = named(jax.random.key(seed), "grid"), len(next(iter(batch.values())))
        self._inputs = jax.tree.map(np.asarray, request_of(system, batch)), np.arange(count)
        self._labels = batch.get("label")
        self._rows = batch_sharding(mesh) if count % batch_shards(mesh) == 0 else replicated(mesh)

        def draw(params: Any, frozen: Any, request: Any, indices: jax.Array) -> jax.Array:
            return system.codec.decode(frozen, system.sample(params, key, request, indices, sampling))

        self._draw: Callable[..., jax.Array] = jax.jit(draw, out_shardings=replicated(mesh))

    def write(self, step: int, weights: Mapping[str, Any], frozen: Mapping[str, Any]) -> np.ndarray:
        """Draw with each set of weights, by label, and write them side by side; return the picture, uint8 [H, W, C].

        All processes must call this; the first one writes.
        """
        inputs = jax.device_put(self._inputs, self._rows)
        with activation_sharding(self._rows if self._rows.mesh.size > 1 else None):
            drawn = {label: jax.device_get(self._draw(params, frozen, *inputs)) for label, params in weights.items()}
        sheets = {label: tile(*by_class(images, self._labels), scale=2) for label, images in drawn.items()}
        picture = beside([labelled(sheet, label) for label, sheet in sheets.items()])
        if jax.process_index() == 0:
            with writing(self._path):
                self._path.mkdir(exist_ok=True)
                write_image(self._path / f"step_{step:07d}.png", picture)
        return picture


class HeldOut:
    """The losses of some weights on a fixed part of the held-out data, with fixed times and noise.

    Raises:
      ConfigError: fewer held-out examples than devices.
    """

    def __init__(self, program: Program) -> None:
        system, pipeline = program.system, program.data.pipeline("test")
        limit = min(program.config["training"]["eval_examples"], len(pipeline))
        shards = batch_shards(program.mesh)
        size = min(pipeline.batch_size, limit) // shards * shards
        if not size:
            raise ConfigError(
                f"training.eval_every: {limit} held-out examples for {shards} devices; "
                "raise training.eval_examples, or set eval_every to 0"
            )
        self._sharding = batch_sharding(program.mesh)
        # The same examples on every process; those that fill no batch are left out.
        self._batches = list(pipeline.one_pass(size, limit // size * size))
        self._numbers = jax.device_put(list(np.arange(len(self._batches))), replicated(program.mesh))
        key = named(jax.random.key(program.config["seed"]), "held out")

        def losses(params: Any, state: TrainState, batch: Any, number: jax.Array) -> dict[str, jax.Array]:
            inputs = (params, state.system_state, batch, named(key, number))
            found, _ = losses_of(system, *inputs, step=state.step, frozen=state.frozen, train=False)
            return by_group("held_out_loss", found)

        self._losses = jax.jit(losses, out_shardings=replicated(program.mesh))

    def __call__(self, params: Any, state: TrainState) -> dict[str, float]:
        """Return the mean loss of each group, "held_out_loss" and "held_out_loss/GROUP"; all processes must call this.

        Args:
          params: {group: tree}, such as an average's; of the state, step, system_state and frozen are read.
        """
        with activation_sharding(self._sharding if self._sharding.mesh.size > 1 else None):
            rows = [
                self._losses(params, state, jax.device_put(numeric(batch), self._sharding), number)
                for batch, number in zip(self._batches, self._numbers, strict=True)
            ]
        rows = jax.device_get(rows)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
