"""Sample grids along the way: the averaged and the raw weights side by side, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.data.files import beside, tile, write_image
from diffusion_jax.rng import named
from diffusion_jax.systems import Sampling, to_uint8


def labelled(sheet: np.ndarray, text: str) -> np.ndarray:
    """A picture with a line of text above it, uint8 [H + 14, W, C]."""
    strip = Image.new("L", (sheet.shape[1], 14), 255)
    ImageDraw.Draw(strip).text((2, 1), text, fill=0)
    return np.concatenate([np.asarray(strip)[..., None].repeat(sheet.shape[-1], -1), sheet])


class GridWriter:
    """Draws a fixed set of samples from the current parameters and writes `workdir`/grids/step_N.png.

    Args:
      system: what is sampled.
      sampling: how.
      batch: whose conditioning is used, from a data pipeline; it must be the same on every process.
      replicated: a sharding that puts the images on every device.
    """

    def __init__(
        self, workdir: str | Path, system: Any, sampling: Sampling, batch: Mapping[str, Any], seed: int, replicated: Any
    ) -> None:
        self._path = Path(workdir) / "grids"
        count = len(batch["image"])
        numeric = {key: value for key, value in batch.items() if np.asarray(value).dtype != object}
        request = jax.tree.map(np.asarray, system.request(numeric))
        system.check_sampling(sampling)
        key = named(jax.random.key(seed), "grid")

        def draw(params: Any) -> jax.Array:
            return to_uint8(system.sample(params, key, request, np.arange(count), sampling))

        self._draw: Callable[[Any], jax.Array] = jax.jit(draw, out_shardings=replicated)

    def write(self, step: int, weights: Mapping[str, Any]) -> np.ndarray:
        """Draw with each set of weights, by label, and write them side by side; returns the picture.

        All processes must call this; the first one writes.
        """
        sheets = [labelled(tile(np.asarray(self._draw(params)), scale=2), label) for label, params in weights.items()]
        picture = beside(sheets)
        if jax.process_index() == 0:
            self._path.mkdir(exist_ok=True)
            write_image(self._path / f"step_{step:07d}.png", picture)
        return picture
