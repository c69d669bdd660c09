"""The Frechet distance between two sets of features, each summed up by its mean and covariance, over many hosts if need be."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import jax
import numpy as np

from diffusion_jax import processes
from diffusion_jax.errors import DataError

_LOG = logging.getLogger(__name__)


def feature_rows(features: Any, name: str = "features") -> np.ndarray:
    """Features [N, D], floating: float64 and narrower types stay as they are, since 50,000 rows fill the memory.

    Raises:
      DataError: another shape, no rows, NaN or infinite values.
    """
    rows = np.asarray(features)
    if not np.issubdtype(rows.dtype, np.floating):
        rows = rows.astype(np.float64)
    if rows.ndim != 2 or not rows.size:
        raise DataError(f"{name} must be [N, D] with at least one row, got the shape {rows.shape}")
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise DataError(f"{int((~finite).sum())} of {len(rows)} rows of {name} are NaN or infinite")
    return rows


def same_width(first: np.ndarray, second: np.ndarray) -> None:
    """Raise a `DataError` unless two sets of features come from one network."""
    if first.shape[1] != second.shape[1]:
        raise DataError(f"features of different widths: {first.shape[1]} and {second.shape[1]}; use one network for both")


@dataclasses.dataclass
class Moments:
    """Mean and covariance of features, in float64 and in one pass over the data.

    Attributes:
      count: rows seen.
      mean: float64 [D].
      scatter: float64 [D, D], the sum of outer products of deviations from the mean.
    """

    count: int = 0
    mean: Any = 0.0
    scatter: Any = 0.0

    def add(self, features: Any) -> Moments:
        """Take rows [N, D] in, by the pairwise update of Chan et al. 1979, which does not cancel digits.

        Raises:
          DataError: not [N, D], of another width than the rows before, NaN or infinite.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2:
            raise DataError(f"features must be [N, D], got the shape {rows.shape}")
        if not rows.size:
            return self
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows).all(1)).sum())
            raise DataError(f"{bad} of {len(rows)} rows of features are NaN or infinite: look at the images they came from")
        total, mean = self.count + len(rows), rows.mean(0)
        centred = rows - mean
        if self.count:
            self._same_width(mean)
            # The outer product that joins the means, as one row more: products of matrices are fast, outer ones are not.
            difference = mean - self.mean
            centred = np.vstack([centred, difference * (self.count * len(rows) / total) ** 0.5])
            mean = self.mean + difference * (len(rows) / total)
        self.count, self.mean, self.scatter = total, mean, self.scatter + centred.T @ centred
        return self

    def merge(self, other: Moments) -> Moments:
        """Take in what another has seen; the other stays as it is.

        Raises:
          DataError: features of another width.
        """
        if not other.count:
            return self
        if not self.count:
            self.count, self.mean, self.scatter = other.count, other.mean, other.scatter  # nothing changes them in place
            return self
        self._same_width(other.mean)
        total = self.count + other.count
        difference = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(difference, difference) * (self.count * other.count / total)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total
        return self

    def _same_width(self, mean: Any) -> None:
        if np.shape(self.mean) != np.shape(mean):
            raise DataError(f"features of different widths: {np.shape(self.mean)} and {np.shape(mean)}")

    @property
    def covariance(self) -> np.ndarray:
        """float64 [D, D], with the denominator N - 1."""
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """A mean and a covariance, with the root that distances need kept: for many distances to one reference.

    Attributes:
      mean: float64 [D].
      covariance: float64 [D, D], symmetric.
      count: the samples behind it, or None where a file does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @functools.cached_property
    def factor(self) -> np.ndarray:
        """float64 [D, R] whose product with its transpose is the covariance.

        Of N samples the rank is at most N - 1: what lies beyond is rounding, and is left out, since a root would make
        1e-8 out of 1e-16. Where N is not known, what lies below the rounding of the largest is left out.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        floor = np.finfo(np.float64).eps * max(values[-1], 0.0)
        kept = values > floor
        if self.count is not None:
            kept[: max(0, len(values) - (self.count - 1))] = False
        return vectors[:, kept] * np.sqrt(values[kept])


def gaussian(statistics: Moments | Gaussian) -> Gaussian:
    """The Gaussian of these moments; one that is already there is returned as it is."""
    if isinstance(statistics, Gaussian):
        return statistics
    return Gaussian(np.asarray(statistics.mean, np.float64), statistics.covariance, statistics.count)


def warn_if_few(statistics: Moments | Gaussian, name: str = "the Frechet distance") -> bool:
    """Log a warning if there are no more samples than features, and say what to use; whether it was logged."""
    count, width = statistics.count, np.shape(statistics.mean)[0]
    if count is None or count > width:
        return False
    _LOG.warning(
        "%s of %d samples with %d features: the covariance is singular and the distance far above its limit for many "
        "samples. Use at least %d samples (published numbers: 50,000), or KID, which is unbiased for any number.",
        name, count, width, width + 1,
    )  # fmt: skip
    return True


def frechet_distance(first: Moments | Gaussian, second: Moments | Gaussian, *, warn: bool = True) -> float:
    """|mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), of the Gaussians with these moments.

    With S_i = L_i L_i', the trace of the root is the sum of the singular values of L_1' L_2. They keep their digits
    where the eigenvalues of S_1 S_2 lose half of theirs, and singular covariances (fewer samples than features) need
    no jitter.

    Args:
      first, second: moments, or a `Gaussian`, whose root is computed once for many distances.
      warn: log a warning where there are no more samples than features.

    Raises:
      DataError: features of different widths, or fewer than 2 samples.

    Sources: Dowson & Landau 1982; Heusel et al. 2017 (arXiv 1706.08500).

    >>> left = Moments().add([[0.0], [2.0]])
    >>> right = Moments().add([[3.0], [5.0]])
    >>> frechet_distance(left, right)
    9.0
    """
    if np.shape(first.mean) != np.shape(second.mean):
        raise DataError(f"features of different widths: {np.shape(first.mean)} and {np.shape(second.mean)}")
    one, two = gaussian(first), gaussian(second)
    if warn:
        warn_if_few(one) or warn_if_few(two)
    trace_of_root = np.linalg.svd(one.factor.T @ two.factor, compute_uv=False).sum()
    offset = one.mean - two.mean
    total = offset @ offset + np.trace(one.covariance) + np.trace(two.covariance) - 2 * trace_of_root
    return float(max(total, 0.0))


def local_rows(features: Any) -> np.ndarray:
    """The rows of a batch that this process answers for, each row of the batch by exactly one process.

    Args:
      features: [N, ...]; numpy, or a `jax.Array` sharded over its first axis alone (replicas are fine), over any
        number of devices and processes.

    Returns:
      numpy [n, ...], in order; all of them where there is one process.

    Raises:
      DataError: an array sharded over another axis.
    """
    if not isinstance(features, jax.Array) or features.is_fully_addressable:
        return np.asarray(features)
    parts = {}
    for shard in features.addressable_shards:
        if any(index != slice(None) for index in shard.index[1:]):
            raise DataError(f"features must be sharded over their rows alone, got {features.sharding}")
        if shard.replica_id == 0:
            parts[shard.index[0].start or 0] = np.asarray(shard.data)
    if not parts:
        return np.zeros((0, *features.shape[1:]), features.dtype)
    return np.concatenate([parts[start] for start in sorted(parts)])


def add_features(moments: Moments, features: Any, mask: Any = None) -> Moments:
    """Take in this process's rows of a batch.

    Args:
      moments: of this process; `merge_processes` adds those of all.
      features: [N, D], as `local_rows` takes them.
      mask: bool [N], sharded like the features: which rows count. The rest are padding.

    Returns:
      The moments, changed.
    """
    rows = local_rows(features)
    return moments.add(rows if mask is None else rows[local_rows(mask).astype(bool)])


def merge_processes(moments: Moments) -> Moments:
    """The moments of what all processes have seen, the same on every process to the last bit.

    Every process must call it. Scatter matrices travel in slices, so that the memory of a process does not grow with
    their number.

    Raises:
      DataError: features of different widths, on every process.
    """
    if jax.process_count() == 1:
        return moments
    counts, widths = processes.gather(np.array([moments.count, np.size(moments.mean) if moments.count else 0], np.int64)).T
    if len(set(widths[counts > 0])) > 1:
        raise DataError(f"features of different widths on the processes: {sorted(set(widths[counts > 0].tolist()))}")
    total, width = int(counts.sum()), int(widths.max())
    if not total:
        return Moments()
    means = processes.gather(np.asarray(moments.mean, np.float64) if moments.count else np.zeros(width))
    mean = (counts[:, None] / total * means).sum(0)
    between = means - mean
    scatter = (between * counts[:, None]).T @ between
    scatter += processes.gather_rows(moments.scatter if moments.count else np.zeros((width, width)))
    return Moments(total, mean, scatter)
