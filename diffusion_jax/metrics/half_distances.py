"""Manifolds from squared distances rounded to float16, as the ADM evaluator computes them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROWS = 1000  # of a tile that are on the device at a time
_SAFE = 65_000.0  # a little below the largest float16


def inside_each_other(real: np.ndarray, generated: np.ndarray, k: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """(bool [M]: which real points lie in a ball of the generated ones, bool [N]: and the other way round).

    Distances are |u|^2 - 2 u.v + |v|^2, every step rounded to float16, in tiles; a tile in which one is not finite is
    computed in float32. They are not quite symmetric, and those to oneself not quite 0, so the rows are the real
    points, and the (k + 1)-th smallest distance, that to oneself among them, is the radius.

    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), the evaluator that was published with it.
    """
    radii_real, radii_generated = _radii(real, k, tile), _radii(generated, k, tile)
    real_in, generated_in = np.zeros(len(real), bool), np.zeros(len(generated), bool)
    for rows, columns, distances in _tiles(real, generated, tile):
        real_in[rows] |= (distances <= radii_generated[columns]).any(1)
        generated_in[columns] |= (distances <= radii_real[rows, None]).any(0)
    return real_in, generated_in


def _radii(points: np.ndarray, k: int, tile: int) -> np.ndarray:
    """float32 [N], squared."""
    smallest = np.full((len(points), k + 1), np.inf, np.float32)
    for rows, _, distances in _tiles(points, points, tile):
        smallest[rows] = np.partition(np.concatenate([smallest[rows], distances], axis=1), k, axis=1)[:, : k + 1]
    return smallest.max(1)


def _tiles(first: np.ndarray, second: np.ndarray, tile: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows, columns, squared distances float32 [at most 1000, at most `tile`]) over all pairs."""
    for top in range(0, len(first), tile):
        u = first[top : top + tile].astype(np.float32)
        for left in range(0, len(second), tile):
            v = jnp.asarray(second[left : left + tile], jnp.float32)
            half = _fits(u, v)
            for start in range(0, len(u), _ROWS):
                part = u[start : start + _ROWS]
                rows = slice(top + start, top + start + len(part))
                yield rows, slice(left, left + len(v)), np.asarray(_squared_distances(part, v, half))


def _fits(u: np.ndarray, v: Any) -> bool:
    """Whether all distances of a tile are finite in float16."""
    norms = [np.sqrt(np.asarray((points**2).sum(1))) for points in (u, v)]
    if (norms[0].max() + norms[1].max()) ** 2 < _SAFE:
        return True  # by the triangle inequality, without looking
    parts = (u[start : start + _ROWS] for start in range(0, len(u), _ROWS))
    return all(bool(np.isfinite(np.asarray(_squared_distances(part, v, True))).all()) for part in parts)


@functools.partial(jax.jit, static_argnames="half")
def _squared_distances(u: jax.Array, v: jax.Array, half: bool) -> jax.Array:
    """float32 [n, m]; with `half`, of values that float16 has. Products add up in float32, as on tensor cores."""

    def rounded(x: jax.Array) -> jax.Array:
        # Not a cast: compilers may leave out a cast to a narrower type and back.
        return jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10) if half else x

    u, v = rounded(u), rounded(v)
    square_u, square_v = (rounded(rounded(x**2).sum(1)) for x in (u, v))
    product = rounded(2 * rounded(jnp.matmul(u, v.T, precision="highest")))
    return jnp.maximum(rounded(rounded(square_u[:, None] - product) + square_v), 0.0)
