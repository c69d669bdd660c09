"""Intervals, limits and verdicts, against closed forms and repeated experiments."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.metrics import (
    Gaussian,
    Interval,
    bootstrap,
    distinguishable,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    moments_of,
)

WIDTH = 8
REFERENCE = Gaussian(np.zeros(WIDTH), np.diag(np.linspace(0.5, 2, WIDTH)))
MEAN, STD = np.linspace(0, 1, WIDTH), np.linspace(1.2, 0.8, WIDTH)
TRUTH = float((MEAN**2).sum() + ((STD - np.sqrt(np.linspace(0.5, 2, WIDTH))) ** 2).sum())


def generated(count: int, seed: int) -> np.ndarray:
    return MEAN + STD * np.random.default_rng(seed).standard_normal((count, WIDTH))


def distance(rows: np.ndarray) -> float:
    return frechet_distance(moments_of(rows), REFERENCE, warn=False)


@functools.cache
def spread(count: int, repeats: int = 400) -> float:
    """The standard deviation of the distance over experiments."""
    return float(np.std([distance(generated(count, 1000 + seed)) for seed in range(repeats)]))


def test_bootstrap_of_a_mean_is_the_textbooks_interval():
    rows = np.random.default_rng(0).exponential(size=(500, 1))
    found = bootstrap(lambda x: float(x.mean()), rows, resamples=2000, level=0.9)
    reach = rows.std(ddof=1) / 500**0.5 * stats.norm.ppf(0.95)
    assert found.value == pytest.approx(rows.mean())
    assert found.low == pytest.approx(rows.mean() - reach, abs=0.1 * reach)
    assert found.high == pytest.approx(rows.mean() + reach, abs=0.1 * reach)
    assert found == bootstrap(lambda x: float(x.mean()), rows, resamples=2000, level=0.9)
    assert found != bootstrap(lambda x: float(x.mean()), rows, resamples=2000, level=0.9, seed=1)


def test_bootstrap_of_two_samples_draws_each_by_itself():
    first, second = np.ones((50, 1)), np.arange(40.0)[:, None]
    found = bootstrap(lambda x, y: float(x.mean() - y.mean()), first, second, resamples=1000)
    reach = second.std() / 40**0.5 * stats.norm.ppf(0.975)
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.1)


def test_the_bias_of_resamples_is_not_in_the_interval():
    """The squared length of a mean of 50 samples in 200 dimensions: each resample adds 4 to it, and varies by 1."""
    rows = np.random.default_rng(0).standard_normal((50, 200)) + 3 / 200**0.5
    found = bootstrap(lambda x: float((x.mean(0) ** 2).sum()), rows, resamples=500)
    assert abs((found.low + found.high) / 2 - found.value) < 0.5
    assert found.low < found.value < found.high


def test_intervals_of_the_distance_have_the_width_that_experiments_have():
    """Both the bootstrap and the delta method; the bootstrap's bias is not in its centre."""
    rows, z = generated(1000, 0), stats.norm.ppf(0.975)
    resampled = bootstrap(distance, rows, resamples=300)
    linear = frechet_interval(rows, REFERENCE)
    assert resampled.value == linear.value == pytest.approx(distance(rows), rel=1e-12)
    for found in (resampled, linear):
        assert found.low < found.value < found.high
        assert (found.high - found.low) / (2 * z) == pytest.approx(spread(1000), rel=0.15)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    found = [frechet_interval(generated(4000, seed), REFERENCE) for seed in range(200)]
    held = sum(interval.low <= TRUTH <= interval.high for interval in found)
    assert 0.90 < held / 200 < 0.99, held


def test_the_limit_for_many_samples():
    """The bias of 200 samples goes: over experiments, the distance is off by many times what the limit is."""
    limits, plain = [], []
    for seed in range(500):
        rows = generated(200, seed)
        limits.append(frechet_infinity(rows, REFERENCE, smallest=50, seed=seed).value.value)
        plain.append(distance(rows))
    error, bias = np.mean(limits) - TRUTH, np.mean(plain) - TRUTH
    assert bias > 6 * np.std(plain) / 500**0.5
    assert abs(error) < 0.35 * bias


def test_the_line_through_exact_points():
    """Distances, counts and slope are those of the subsets, the largest being all."""
    rows = generated(600, 0).astype(np.float32)
    found = frechet_infinity(rows, REFERENCE, points=6, smallest=100)
    np.testing.assert_array_equal(found.counts, [100, 200, 300, 400, 500, 600])
    assert found.distances[-1] == pytest.approx(distance(rows), rel=1e-9)
    order = np.random.default_rng(0)
    expected = [distance(rows[order.permutation(600)[:count]]) for count in found.counts]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-9)
    line = np.polyfit(1 / found.counts, found.distances, 1)
    assert (found.slope, found.value.value) == pytest.approx(tuple(line))
    assert found.value.low < found.value.value < found.value.high
    again = frechet_infinity(rows, REFERENCE, points=6, smallest=100)
    np.testing.assert_array_equal(again.distances, found.distances)


def test_subsets_of_fewer_samples_than_features_are_exact_too():
    width = 30
    reference = Gaussian(np.zeros(width), np.diag(np.geomspace(1, 1e-6, width)))
    rows = np.random.default_rng(0).standard_normal((60, width))
    found = frechet_infinity(rows, reference, points=3, smallest=10)
    order = np.random.default_rng(0)
    expected = [frechet_distance(moments_of(rows[order.permutation(60)[:n]]), reference, warn=False) for n in found.counts]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-9)


def test_subsets_smaller_than_the_features_are_warned_of(caplog):
    frechet_infinity(generated(60, 0), REFERENCE, smallest=WIDTH)
    assert "smallest=16 or more" in caplog.text and "KID" in caplog.text


@pytest.mark.parametrize(
    ("first", "second", "differ", "words"),
    [
        ((3.0, 2.9, 3.1), (3.05, 2.95, 3.15), False, "cannot be told apart at 95 %"),
        ((3.0, 2.9, 3.1), (4.0, 3.9, 4.1), True, "old is below new at 95 %"),
        ((4.0, 3.9, 4.1), (3.0, 2.9, 3.1), True, "old is above new"),
        # The intervals overlap, and yet sqrt(2) * 0.1 < 0.15.
        ((3.0, 2.9, 3.1), (3.15, 3.05, 3.25), True, "old is below new"),
        # The halves that face each other count, not those that look away.
        ((3.0, 1.0, 3.1), (3.2, 3.1, 9.0), True, "below"),
        ((3.2, 3.1, 9.0), (3.0, 1.0, 3.1), True, "above"),
    ],
)
def test_verdicts(first, second, differ, words):
    verdict = distinguishable(Interval(*first), Interval(*second), ("old", "new"))
    assert verdict.differ is differ and words in verdict.sentence
    assert verdict.difference.value == pytest.approx(first[0] - second[0])


def test_equal_results_are_rarely_told_apart():
    """Of two runs of one model, 5 % of pairs."""
    found = [frechet_interval(generated(1500, seed), REFERENCE) for seed in range(400)]
    apart = [distinguishable(*pair).differ for pair in zip(found[::2], found[1::2], strict=True)]
    assert 0.01 < np.mean(apart) < 0.11


def test_bad_input():
    rows = generated(30, 0)
    with pytest.raises(ConfigError, match="at least 20"):
        bootstrap(np.mean, rows, resamples=5)
    with pytest.raises(ConfigError, match=r"level"):
        frechet_interval(rows, REFERENCE, level=1.0)
    with pytest.raises(ConfigError, match="different levels"):
        distinguishable(Interval(1, 0, 2, 0.9), Interval(1, 0, 2, 0.95))
    with pytest.raises(DataError, match="NaN"):
        distinguishable(Interval(1, 0, 2), Interval(float("nan"), 0, 2))
    with pytest.raises(ConfigError, match="at least 3 points"):
        frechet_infinity(rows, REFERENCE, smallest=29)
    for function in (frechet_infinity, frechet_interval):
        with pytest.raises(DataError, match="different widths"):
            function(rows[:, :3], REFERENCE)
    with pytest.raises(DataError, match="at least 4"):
        frechet_infinity(rows[:3], REFERENCE)
    with pytest.raises(DataError, match="NaN or infinite"):
        bootstrap(np.mean, np.full((30, 1), np.nan))
