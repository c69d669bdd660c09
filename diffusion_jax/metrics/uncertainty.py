"""How far a number can be trusted: intervals, the limit for many samples, and whether two results differ."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.lazy import lazy
from diffusion_jax.metrics.frechet import Gaussian, Moments, feature_rows, frechet_distance, gaussian

_LOG = logging.getLogger(__name__)
stats = lazy("scipy.stats")


class Interval(NamedTuple):
    """An estimate and what else it could have been.

    Attributes:
      value: the statistic of all samples.
      low, high: the interval's ends; value lies between.
      level: the share of such intervals that hold the truth, such as 0.95.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[..., float], *features: Any, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """An interval of a statistic from samples drawn anew, with repetition, out of the samples that there are.

    A resample repeats rows, and distances such as FID are biased by it as by fewer samples: the spread is taken from the
    resamples, the centre from the samples themselves. It says what other samples of the same model would change, not
    what training again would.

    Args:
      statistic: (features [N, D], ...) -> a number; the first of several arrays may be of another length than the next.
      features: arrays whose rows are drawn anew, each by itself. What is not to vary belongs into the statistic.
      resamples: how often.
      level: of the interval, in (0, 1).
      seed: of the draws.

    Raises:
      ConfigError: fewer than 20 resamples, or a level out of range.

    Source: Efron & Tibshirani 1993, chapter 13.

    >>> bootstrap(lambda x: float(x.mean()), np.arange(100.0)[:, None]).value
    49.5
    """
    if resamples < 20 or not 0 < level < 1:
        raise ConfigError(f"the bootstrap needs resamples of at least 20 and a level in (0, 1), got {resamples} and {level}")
    arrays = [feature_rows(rows) for rows in features]
    rng = np.random.default_rng(seed)
    value = float(statistic(*arrays))
    drawn = [statistic(*(rows[rng.integers(len(rows), size=len(rows))] for rows in arrays)) for _ in range(resamples)]
    deviations = np.asarray(drawn, np.float64) - np.mean(drawn)
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    # The mirror image: a statistic that strays upwards in resamples was perhaps strayed upwards itself.
    return Interval(value, value - float(high), value - float(low), level)


def frechet_interval(features: Any, reference: Moments | Gaussian, *, level: float = 0.95) -> Interval:
    """The Frechet distance of generated features with an interval, at the cost of two distances and without resampling.

    By the delta method: each sample's influence on the distance is known in closed form, and the variance of the
    distance is that of the influences over N. It holds for many more samples than features (fewer are warned of);
    below that, and where the distance is hardly more than its bias, what it leaves out is larger than what it states
    (see `frechet_infinity`).

    Args:
      features: of the generated samples, [N, D].
      reference: the real side, taken as exact.
      level: of the interval, in (0, 1).

    Raises:
      DataError: fewer than 2 samples, or another width than the reference.

    Source: van der Vaart 1998, chapter 20; the derivative of the root as in Muzellec & Cuturi 2018 (arXiv 1805.07594).
    """
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval must lie in (0, 1), got {level}")
    rows, reference = feature_rows(features), gaussian(reference)
    moments = moments_of(rows)
    value = frechet_distance(moments, reference)
    # With S_2 = L L', the trace of the root is that of M^(1/2), M = L' S_1 L, whose derivative is M^(-1/2) / 2.
    values, vectors = np.linalg.eigh(reference.factor.T @ moments.covariance @ reference.factor)
    kept = values > np.finfo(np.float64).eps * values[-1]
    project = reference.factor @ (vectors[:, kept] * values[kept] ** -0.25)
    offset = 2 * (moments.mean - reference.mean)
    influences = []
    for start in range(0, len(rows), 4096):
        centred = rows[start : start + 4096] - moments.mean
        influences.append(centred @ offset + (centred**2).sum(1) - ((centred @ project) ** 2).sum(1))
    reach = np.std(np.concatenate(influences)) / len(rows) ** 0.5 * stats.norm.ppf((1 + level) / 2)
    return Interval(value, float(value - reach), float(value + reach), level)


class Extrapolation(NamedTuple):
    """The Frechet distance for infinitely many samples.

    Attributes:
      value: the fitted line at 1/N = 0, with the interval of the fit.
      counts: int [P], the numbers of samples that were measured.
      distances: float64 [P], their distances.
      slope: of the line: by N samples the distance is too large by about slope / N.
    """

    value: Interval
    counts: np.ndarray
    distances: np.ndarray
    slope: float


def frechet_infinity(
    features: Any,
    reference: Moments | Gaussian,
    *,
    points: int = 15,
    smallest: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Extrapolation:
    """FID-infinity: distances of subsets of growing size, a line through them against 1/N, and its value at 0.

    It removes the bias of the generated samples, to first order in 1/N; that of the reference's own number stays.

    Args:
      features: of the generated samples, [N, D].
      reference: the real side.
      points: how many sizes, evenly spaced from `smallest` to N.
      smallest: 5,000 by default, or a tenth of N where that is more; with few samples N / 2.
      level: of the interval around the line's value at 0.
      seed: of the subsets, each drawn by itself without repetition.

    Raises:
      ConfigError: fewer than 3 points, or `smallest` out of 2 .. N - 2.
      DataError: fewer than 4 samples, or another width than the reference.

    Source: Chong & Forsyth 2020, section 4 (arXiv 1911.07023).
    """
    rows = feature_rows(features)
    count, width = rows.shape
    if (width,) != np.shape(reference.mean):
        raise DataError(f"features of different widths: {(width,)} and {np.shape(reference.mean)}")
    if count < 4:
        raise DataError(f"FID-infinity needs at least 4 samples, got {count}")
    smallest = min(max(5000, count // 10), count // 2) if smallest is None else smallest
    if points < 3 or not 2 <= smallest <= count - 2:
        raise ConfigError(f"FID-infinity of {count} samples needs at least 3 points and smallest in 2..{count - 2}, "
                          f"got {points} and {smallest}")  # fmt: skip
    if smallest <= width:
        _LOG.warning(
            "FID-infinity from subsets of %d samples with %d features: the distance is not yet a line in 1/N there. "
            "Use smallest=%d or more (and several times as many samples), or KID, which has no bias.",
            smallest, width, 2 * width,
        )  # fmt: skip
    counts = np.unique(np.linspace(smallest, count, points).round().astype(int))
    distances = _of_subsets(rows, gaussian(reference), counts, np.random.default_rng(seed))
    fit = stats.linregress(1 / counts, distances)
    reach = fit.intercept_stderr * stats.t.ppf((1 + level) / 2, len(counts) - 2)
    value = Interval(float(fit.intercept), float(fit.intercept - reach), float(fit.intercept + reach), level)
    return Extrapolation(value, counts, distances, float(fit.slope))


def _of_subsets(rows: np.ndarray, reference: Gaussian, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The distance of a random subset of each size. With S_2 = L L', the trace of the root is that of (L' S_1 L)^(1/2):
    rows are multiplied with L once, and each subset costs a product and eigenvalues, a third of a distance by itself.
    """
    centre = rows.mean(0, dtype=np.float64)
    projected, squares = np.empty((len(rows), reference.factor.shape[1])), np.empty(len(rows))
    for part in _parts(np.arange(len(rows))):
        centred = rows[part] - centre
        projected[part], squares[part] = centred @ reference.factor, (centred**2).sum(1)
    distances = []
    for number in counts:
        chosen = rng.permutation(len(rows))[:number]
        moments, offset = Moments(), np.zeros(rows.shape[1])
        for part in _parts(chosen):
            moments.add(projected[part])
            offset += (rows[part] - centre).sum(0) / number
        values = np.linalg.eigvalsh(moments.covariance)[-(number - 1) :]  # the rest is rounding: see `Gaussian.factor`
        trace = (squares[chosen].sum() - number * (offset @ offset)) / (number - 1)
        gap = centre + offset - reference.mean
        root = np.sqrt(np.clip(values, 0, None)).sum()
        distances.append(gap @ gap + trace + np.trace(reference.covariance) - 2 * root)
    return np.array(distances)


def _parts(indices: np.ndarray, size: int = 4096) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def moments_of(features: np.ndarray, batch: int = 4096) -> Moments:
    """The moments of features [N, D], a part at a time in float64."""
    moments = Moments()
    for start in range(0, len(features), batch):
        moments.add(features[start : start + batch])
    return moments


class Verdict(NamedTuple):
    """Whether two results differ.

    Attributes:
      differ: whether 0 lies outside the interval of the difference.
      difference: first minus second, with its interval.
      sentence: the same in words.
    """

    differ: bool
    difference: Interval
    sentence: str


def distinguishable(first: Interval, second: Interval, names: tuple[str, str] = ("the first", "the second")) -> Verdict:
    """Whether two independent results with intervals can be told apart at the intervals' level.

    The interval of the difference joins the halves that face each other as roots of sums of squares. That intervals
    overlap is not enough to call results equal: two may overlap and still differ.

    Args:
      first, second: intervals of one level; of the same statistic on the same number of samples.
      names: for the sentence.

    Raises:
      ConfigError: intervals of different levels.
      DataError: ends that are NaN.

    Source: Zou & Donner 2008 (Statistics in Medicine 27), the method of variance estimates recovery.

    >>> distinguishable(Interval(3.0, 2.9, 3.1), Interval(3.1, 3.0, 3.2), ("A", "B")).sentence
    'A (3 [2.9, 3.1]) and B (3.1 [3, 3.2]) cannot be told apart at 95 %'
    """
    if first.level != second.level:
        raise ConfigError(f"intervals of different levels cannot be compared: {first.level} and {second.level}")
    if not np.isfinite([first, second]).all():
        raise DataError(f"intervals with NaN or infinite ends cannot be compared: {first} and {second}")
    value = first.value - second.value
    low = value - np.hypot(first.value - first.low, second.high - second.value)
    high = value + np.hypot(first.high - first.value, second.value - second.low)
    difference = Interval(value, float(low), float(high), first.level)
    differ = bool(low > 0 or high < 0)
    order = f"{names[0]} is {'above' if value > 0 else 'below'} {names[1]}"
    level = f"at {100 * first.level:g} %"
    if differ:
        return Verdict(True, difference, f"{order} {level}: {first} and {second}")
    return Verdict(False, difference, f"{names[0]} ({first}) and {names[1]} ({second}) cannot be told apart {level}")
