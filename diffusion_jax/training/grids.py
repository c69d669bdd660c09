"""Sample grids along the way: the averaged and the raw weights side by side, from the same noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.data.files import beside, tile, write_image
from diffusion_jax.errors import ConfigError
from diffusion_jax.models import activation_sharding
from diffusion_jax.rng import named
from diffusion_jax.systems import Sampling, to_uint8
from diffusion_jax.training.mesh import batch_sharding, batch_shards, numeric, replicated
from diffusion_jax.training.metrics import writing


def labelled(sheet: np.ndarray, text: str) -> np.ndarray:
    """A picture with a line of text above it, uint8 [H + 14, W, C]."""
    strip = Image.new("L", (sheet.shape[1], 14), 255)
    ImageDraw.Draw(strip).text((2, 1), text, fill=0)
    return np.concatenate([np.asarray(strip)[..., None].repeat(sheet.shape[-1], -1), sheet])


def fixed_batch(pipeline: Any, count: int) -> dict[str, np.ndarray]:
    """The same few shuffled examples on every process: sources are often sorted by class."""
    one_host = dataclasses.replace(pipeline, batch_size=min(count, len(pipeline)), host=0, hosts=1, cache=False)
    return numeric(one_host.batch(0))


class GridWriter:
    """Draws a fixed set of samples from the current parameters and writes `workdir`/grids/step_N.png.

    Args:
      system: what is sampled.
      sampling: how.
      batch: whose conditioning is used; it must be the same on every process.
      mesh: the devices share the samples where their number divides.
    """

    def __init__(
        self, workdir: str | Path, system: Any, sampling: Sampling, batch: Mapping[str, Any], seed: int, mesh: jax.sharding.Mesh
    ) -> None:
        self._path = Path(workdir) / "grids"
        if not getattr(system, "draws_images", True):
            raise ConfigError(f"the system {system.name!r} draws no images: set training.grid_every to 0")
        system.check_sampling(sampling)
        key = named(jax.random.key(seed), "grid")
        count = len(batch["image"])
        self._inputs = jax.tree.map(np.asarray, dict(system.request(batch))), np.arange(count)
        self._rows = batch_sharding(mesh) if count % batch_shards(mesh) == 0 else replicated(mesh)

        def draw(params: Any, request: Any, indices: jax.Array) -> jax.Array:
            return to_uint8(system.sample(params, key, request, indices, sampling))

        self._draw: Callable[..., jax.Array] = jax.jit(draw, out_shardings=replicated(mesh))

    def write(self, step: int, weights: Mapping[str, Any]) -> np.ndarray:
        """Draw with each set of weights, by label, and write them side by side; returns the picture.

        All processes must call this; the first one writes.
        """
        inputs = jax.device_put(self._inputs, self._rows)
        with activation_sharding(self._rows if self._rows.mesh.size > 1 else None):
            drawn = {label: np.asarray(self._draw(params, *inputs)) for label, params in weights.items()}
        picture = beside([labelled(tile(images, scale=2), label) for label, images in drawn.items()])
        if jax.process_index() == 0:
            with writing(self._path):
                self._path.mkdir(exist_ok=True)
                write_image(self._path / f"step_{step:07d}.png", picture)
        return picture
