"""Precision and recall of generated features: how many lie in the other set's manifold, a union of balls."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.metrics.frechet import feature_rows, same_width

VARIANTS = ("original", "adm")

_ROWS, _COLUMNS = 4096, 8192  # of a tile of distances on the device: 128 MiB
_SPARE = 8  # candidates beyond the wanted ones, for those that float32 cannot tell apart
_HOST_PAIRS = 2**25  # up to which a CPU is quicker without a compiled program
_PAIRS = 4096  # whose differences are held at a time


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1].

    Attributes:
      precision: of the generated samples that lie in a ball of the real ones.
      recall: of the real samples that lie in a ball of the generated ones.
    """

    precision: float
    recall: float


def precision_recall(
    generated: Any, real: Any, *, k: int = 3, variant: str = "original", tile: int | None = None
) -> PrecisionRecall:
    """Precision and recall of k-nearest-neighbour manifolds, in tiles: memory does not grow with N squared.

    Each sample is the centre of a ball that reaches to its k-th nearest neighbour in its own set, itself not counted.

    Args:
      generated, real: features [N, D] and [M, D]: of VGG-16 fc2, 50,000 of each ("original"), or of pool_3, with 10,000
        real ones ("adm").
      k: which neighbour.
      variant: "original" gives what distances in float64 give; "adm" rounds squared distances to float16 as the ADM
        evaluator does. Their numbers are not comparable.
      tile: rows and columns at a time; 10,000 in "adm", where it decides which tiles overflow float16.

    Raises:
      ConfigError: an unknown variant, or k or tile below 1.
      DataError: not more than k samples in a set, or features of different widths, NaN or infinite.

    Sources: Kynkaanniemi et al. 2019 (arXiv 1904.06991); Dhariwal & Nichol 2021 (arXiv 2105.05233).
    """
    check_choice("variant of precision and recall", variant, VARIANTS)
    if k < 1 or (tile is not None and tile < 1):
        raise ConfigError(f"precision and recall need k and tile of at least 1, got {k} and {tile}")
    generated, real = feature_rows(generated, "generated features"), feature_rows(real, "real features")
    same_width(generated, real)
    if min(len(generated), len(real)) <= k:
        raise DataError(f"precision and recall with k={k} need more than {k} samples, got {len(generated)} and {len(real)}")
    if variant == "adm":
        real_in, generated_in = _inside_each_other(real, generated, k, tile or 10_000)
    else:
        # Around a centre distances stay, and float32 keeps more of them: around its own within a set, be it collapsed.
        centres = [rows.mean(0, dtype=np.float64) for rows in (real, generated)]
        sets = [_Points(rows, centres[0], tile) for rows in (real, generated)]
        radii_real, radii_generated = _squared_radii(sets[0], k), _squared_radii(_Points(generated, centres[1], tile), k)
        real_in, generated_in = _inside(sets[0], sets[1], radii_generated), _inside(sets[1], sets[0], radii_real)
    return PrecisionRecall(float(generated_in.mean()), float(real_in.mean()))


class _Points:
    """Features as they came, and in tiles of float32 around a centre."""

    def __init__(self, rows: np.ndarray, centre: np.ndarray, tile: int | None):
        self.rows, self._centre, self.small = rows, centre, tile is None and jax.default_backend() == "cpu"
        # Tiles of one size, as few as the largest allows, so that little is filled up.
        self.height, self.width = (-(-len(rows) // -(-len(rows) // (tile or size))) for size in (_ROWS, _COLUMNS))
        self.norms = np.concatenate([np.linalg.norm(part - centre, axis=1) for _, part in _slices(rows, 1024)])
        self.largest = self.norms.max()

    def tiles(self, size: int) -> Iterator[tuple[int, jax.Array]]:
        """(first row, float32 [size, D]) of each tile, the last filled with zeros."""
        for start, part in _slices(self.rows, size):
            yield start, jnp.asarray(np.pad(self.centred(part), ((0, size - len(part)), (0, 0))))

    def centred(self, rows: np.ndarray) -> np.ndarray:
        """Return rows around the centre, float32."""
        return (rows - self._centre).astype(np.float32)


def _slices(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]


@functools.partial(jax.jit, static_argnames="count")
def _merge(x: jax.Array, y: jax.Array, offset: jax.Array, start: int, values: Any, indices: Any, count: int) -> Any:
    """The `count` smallest |x - y|^2 - offset of those so far and of a tile, and where they are."""
    product = jnp.matmul(x, y.T, precision="highest")
    scores = (x**2).sum(1)[:, None] - 2 * product + ((y**2).sum(1) - offset)
    places = jnp.broadcast_to(start + jnp.arange(y.shape[0]), scores.shape)
    scores, places = jnp.concatenate([values, scores], 1), jnp.concatenate([indices, places], 1)
    lowest, order = jax.lax.top_k(-scores, count)
    return -lowest, jnp.take_along_axis(places, order, axis=1)


def _candidates(points: _Points, others: _Points, offset: np.ndarray, count: int) -> Iterator[Any]:
    """For each tile of points: (their indices, float32 scores [n, count], the indices of the others [n, count]).

    A score is a squared distance less the other's offset, and the smallest ones are given, rising.
    """
    if points.small and len(points.rows) * len(others.rows) <= _HOST_PAIRS:
        yield from _candidates_on_host(points, others, offset, count)
        return
    for start, x in points.tiles(points.height):
        values = jnp.full((points.height, count), jnp.inf)
        indices = jnp.full((points.height, count), -1)
        for first, y in others.tiles(others.width):
            reach = np.full(others.width, -np.inf, np.float32)  # of the filling: never near
            reach[: len(others.rows) - first] = offset[first : first + others.width]
            values, indices = _merge(x, y, reach, first, values, indices, count)
        rows = np.arange(start, min(start + points.height, len(points.rows)))
        yield rows, np.asarray(values)[: len(rows)], np.asarray(indices)[: len(rows)]


def _candidates_on_host(points: _Points, others: _Points, offset: np.ndarray, count: int) -> Iterator[Any]:
    """As `_candidates`, without compiling anything."""
    y = others.centred(others.rows)
    reach = (y**2).sum(1) - offset
    for start, part in _slices(points.rows, 1024):
        x = points.centred(part)
        scores = (x**2).sum(1)[:, None] - 2 * (x @ y.T) + reach
        nearest = np.argpartition(scores, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(scores, nearest, axis=1)
        order = np.argsort(values, axis=1)
        yield (
            np.arange(start, start + len(part)),
            np.take_along_axis(values, order, axis=1),
            np.take_along_axis(nearest, order, axis=1),
        )


def _tolerance(points: _Points, others: _Points, rows: np.ndarray) -> np.ndarray:
    """What float32 may get a squared distance wrong by: its rounding, times what adds up over D products."""
    scale = (points.norms[rows] + others.largest) ** 2
    return (16 + points.rows.shape[1] ** 0.5) * 2.0**-23 * scale


def _exact(points: _Points, others: _Points, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances of pairs in float64, by differences: those of a pair are the same either way round."""
    parts = []
    for start in range(0, len(rows), _PAIRS):
        span = slice(start, start + _PAIRS)
        gap = points.rows[rows[span]].astype(np.float64) - others.rows[columns[span]]
        parts.append(np.einsum("nd,nd->n", gap, gap))
    return np.concatenate(parts) if parts else np.zeros(0)


def _squared_radii(points: _Points, k: int) -> np.ndarray:
    """float64 [N], of the balls of a set: float32 names candidates, float64 decides."""
    everyone = np.arange(len(points.rows))
    radii, known = np.zeros(len(everyone)), np.zeros(len(everyone), bool)
    count = min(k + 1 + _SPARE, len(everyone))
    for rows, scores, indices in _candidates(points, points, np.zeros(len(everyone), np.float32), count):
        distances = _exact(points, points, np.repeat(rows, count), indices.ravel()).reshape(indices.shape)
        distances[indices == rows[:, None]] = np.inf  # itself
        found = np.partition(distances, k - 1, axis=1)[:, k - 1]
        radii[rows] = np.where(known[rows], radii[rows], found)
        unsure = (count < len(everyone)) & (found > scores[:, -1] - _tolerance(points, points, rows))
        for row in rows[unsure]:  # one that was left out may be nearer
            if known[row]:
                continue
            distances = _exact(points, points, np.full(len(everyone), row), everyone)
            same = distances == 0  # a collapsed generator's samples, all of one radius
            distances[row] = np.inf
            radii[same], known[same] = np.partition(distances, k - 1)[k - 1], True
    return radii


def _inside(points: _Points, others: _Points, radii: np.ndarray) -> np.ndarray:
    """bool [N]: which points lie in a ball of the others, its surface included."""
    found = np.zeros(len(points.rows), bool)
    count = min(1 + _SPARE, len(others.rows))
    everyone = np.arange(len(others.rows))
    for rows, scores, indices in _candidates(points, others, radii.astype(np.float32), count):
        tolerance = _tolerance(points, others, rows)[:, None] + radii.max() * 2.0**-23
        found[rows] = (scores < -tolerance).any(1)
        close = (np.abs(scores) <= tolerance) & ~found[rows][:, None]
        i, j = np.nonzero(close)
        within = _exact(points, others, rows[i], indices[i, j]) <= radii[indices[i, j]]
        found[rows[i[within]]] = True
        unsure = (count < len(others.rows)) & ~found[rows] & (scores[:, -1] <= tolerance[:, 0])
        for row in rows[unsure]:
            found[row] = (_exact(points, others, np.full(len(everyone), row), everyone) <= radii).any()
    return found


_HALF_ROWS = 1000  # of a tile that are on the device at a time
_SAFE = 65_000.0  # a little below the largest float16


def _inside_each_other(real: np.ndarray, generated: np.ndarray, k: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
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
            for start in range(0, len(u), _HALF_ROWS):
                part = u[start : start + _HALF_ROWS]
                rows = slice(top + start, top + start + len(part))
                yield rows, slice(left, left + len(v)), np.asarray(_squared_distances(part, v, half))


def _fits(u: np.ndarray, v: Any) -> bool:
    """Whether all distances of a tile are finite in float16."""
    norms = [np.sqrt(np.asarray((points**2).sum(1))) for points in (u, v)]
    if (norms[0].max() + norms[1].max()) ** 2 < _SAFE:
        return True  # by the triangle inequality, without looking
    parts = (u[start : start + _HALF_ROWS] for start in range(0, len(u), _HALF_ROWS))
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


_TILE = 4096


def nearest_rows(points: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows of `others` to each point, nearest first.

    Args:
      points: [N, D].
      others: [M, D], M at least `count`.

    Returns:
      (Euclidean distances float64 [N, count], indices int [N, count]).
    """
    points, others = (np.asarray(rows, np.float64) for rows in (points, others))
    norms = (others**2).sum(1)
    distances, indices = [], []
    for start in range(0, len(points), _TILE):
        part = points[start : start + _TILE]
        scores = norms - 2 * part @ others.T
        near = np.argpartition(scores, count - 1, axis=1)[:, :count] if count < len(others) else np.argsort(scores, 1)
        found = np.linalg.norm(part[:, None] - others[near], axis=-1)
        order = np.argsort(found, axis=1, kind="stable")
        distances.append(np.take_along_axis(found, order, axis=1))
        indices.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(distances), np.concatenate(indices)
