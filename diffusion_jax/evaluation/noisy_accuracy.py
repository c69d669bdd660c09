"""How well a noisy classifier reads images at every noise level."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.process.time_samplers import snap
from diffusion_jax.rng import named
from diffusion_jax.systems import NoisyClassifier, to_float
from diffusion_jax.systems.noisy_classifier import QUARTILES, right


def accuracy_by_time(
    system: NoisyClassifier, params: Any, pipeline: data.Pipeline, *, limit: int = 1000, batch_size: int = 64,
    bins: int = QUARTILES, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Top-1 and top-5 accuracy over a pipeline's first images, each noised once in every bin of t.

    Args:
      limit: how many images.
      bins: of equal width over (0, 1]; times are uniform within one.

    Returns:
      "accuracy_top1" and "accuracy_top5" over all, and for each bin such as "accuracy_top1_t_0_to_0.25".
    """
    width = 1 / bins

    @jax.jit
    def look(params: Any, batch: Any, number: int) -> jax.Array:
        x0, count = to_float(batch["image"]), len(batch["image"])
        found = []
        for place in range(bins):
            key = named(jax.random.key(seed), "accuracy", place, number)
            t = snap(system.process, width * (place + 1 - jax.random.uniform(named(key, "times"), (count,))))
            x_t = system.process.diffuse(x0, t, jax.random.normal(named(key, "noise"), x0.shape))
            found.append(right(system.logits(params, x_t, t), jnp.asarray(batch["label"])))
        return jnp.stack(found)  # [bins, 2, B]

    parts = [
        np.asarray(look(params, {name: batch[name] for name in ("image", "label")}, number))
        for number, batch in enumerate(pipeline.one_pass(min(batch_size, limit), limit=limit))
    ]
    means = np.concatenate(parts, axis=-1).mean(-1)
    rows: dict[str, float] = {}
    for kind, name in enumerate(("accuracy_top1", "accuracy_top5")):
        rows[name] = float(means[:, kind].mean())
        rows |= {f"{name}_t_{place * width:g}_to_{(place + 1) * width:g}": float(means[place, kind]) for place in range(bins)}
    return rows
