"""The Frechet distance against scipy's matrix root and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from diffusion_jax.errors import DataError
from diffusion_jax.metrics import Moments, frechet_distance


def _features(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(width)


def test_moments_in_pieces_are_numpys_even_far_from_zero():
    rows = _features(501, 7, 0) + 1e6
    moments = Moments()
    for piece in np.array_split(rows, [0, 1, 3, 200]):
        moments.add(piece)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-8, atol=1e-8)


def test_distance_is_the_formula_with_scipys_matrix_root():
    first, second = _features(400, 12, 1), _features(300, 12, 2)
    mean, cov = ([function(x) for x in (first, second)] for function in (lambda x: x.mean(0), lambda x: np.cov(x.T)))
    root = linalg.sqrtm(cov[0] @ cov[1]).real
    expected = ((mean[0] - mean[1]) ** 2).sum() + np.trace(cov[0] + cov[1] - 2 * root)
    assert frechet_distance(Moments().add(first), Moments().add(second)) == pytest.approx(expected, rel=1e-9)


def test_closed_form_of_gaussians_with_commuting_covariances():
    # W2^2 = |m1 - m2|^2 + sum (sqrt(a_i) - sqrt(b_i))^2
    m1, m2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.0])
    first = Moments(11, m1, np.diag(a) * 10)
    second = Moments(11, m2, np.diag(b) * 10)
    expected = 5 + (1 - 3) ** 2 + (2 - 1) ** 2 + (0.5 - 0) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_fewer_samples_than_features_need_no_jitter():
    few, many = _features(10, 40, 3), _features(300, 40, 4)
    left, right = Moments().add(few), Moments().add(many)
    forward, backward = frechet_distance(left, right), frechet_distance(right, left)
    assert np.isfinite(forward) and forward == pytest.approx(backward, rel=1e-6)
    assert frechet_distance(left, left) == pytest.approx(0, abs=1e-5)


def test_bad_features():
    with pytest.raises(DataError, match="different widths"):
        frechet_distance(Moments().add(np.zeros((3, 2))), Moments().add(np.zeros((3, 4))))
    with pytest.raises(DataError, match="at least 2 samples"):
        _ = Moments().add(np.zeros((1, 2))).covariance
    with pytest.raises(DataError, match=r"\[N, D\]"):
        Moments().add(np.zeros((3, 2, 2)))
