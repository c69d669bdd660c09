"""Metrics of given features, logits and images, against scipy, torch-fidelity, scikit-image and brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from diffusion_jax import metrics
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.metrics import Gaussian, Moments, frechet_distance, manifolds
from tests.peers import peer


def features(count: int, width: int, condition: float = 1.0, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Normal rows whose covariance has eigenvalues from 1 down to 1 / condition, along axes that all share."""
    axes = np.linalg.qr(np.random.default_rng(99).standard_normal((width, width)))[0]
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows * np.geomspace(1, condition**-0.5, width)) @ axes + shift


# The Frechet distance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 1e6, 1e12, 1e16])
@pytest.mark.parametrize("counts", [(500, 400), (64, 65), (40, 400), (40, 30)])
def test_frechet_distance_is_scipys(counts, condition):
    """N above, at and below the dimension; scipy's root of a singular product is itself good to a few 1e-7."""
    first, second = features(counts[0], 64, condition, 0.1, seed=1), 1.2 * features(counts[1], 64, condition, seed=2)
    mean, cov = ([function(x) for x in (first, second)] for function in (lambda x: x.mean(0), lambda x: np.cov(x.T)))
    root = linalg.sqrtm(cov[0] @ cov[1])
    expected = ((mean[0] - mean[1]) ** 2).sum() + np.trace(cov[0] + cov[1]) - 2 * np.trace(root).real
    found = frechet_distance(Moments().add(first), Moments().add(second))
    assert found == pytest.approx(expected, rel=1e-6)
    # The same trace by the samples' own inner products, which singular covariances do not trouble.
    centred = first - mean[0], second - mean[1]
    trace = linalg.svdvals(centred[0] @ centred[1].T).sum() / np.sqrt((counts[0] - 1) * (counts[1] - 1))
    assert found == pytest.approx(((mean[0] - mean[1]) ** 2).sum() + np.trace(cov[0] + cov[1]) - 2 * trace, rel=1e-10)


@pytest.mark.parametrize("count", [10, 64, 500])
def test_a_set_has_no_distance_to_itself(count):
    moments = Moments().add(30 * features(count, 64, 1e8))
    assert frechet_distance(moments, moments) < 1e-6


def test_frechet_distance_is_torch_fidelitys():
    fid = peer("torch_fidelity.metric_fid")
    first, second = features(300, 32, 100.0, 0.2, seed=3), features(200, 32, 10.0, seed=4)
    statistics = [{"mu": rows.mean(0), "sigma": np.cov(rows.T)} for rows in (first, second)]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*(Moments().add(rows) for rows in (first, second))) == pytest.approx(theirs, rel=1e-9)


def test_a_file_does_not_say_its_rank():
    """A covariance of 40 samples, its number forgotten: what is below rounding does not become distance."""
    few, many = Moments().add(features(40, 64)), Moments().add(features(400, 64, 100.0, seed=1))
    forgotten = Gaussian(few.mean, few.covariance)
    assert frechet_distance(forgotten, many) == pytest.approx(frechet_distance(few, many), rel=1e-6)


def test_few_samples_are_warned_of(caplog):
    few, many = Moments().add(features(64, 64)), Moments().add(features(65, 64, seed=1))
    frechet_distance(many, many)
    assert not caplog.records
    frechet_distance(few, many)
    assert "64 samples with 64 features" in caplog.text and "KID" in caplog.text and "at least 65" in caplog.text


# KID and the Inception Score --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("condition", "size"), [(1.0, 50), (1e6, 100), (1e6, 20)])
def test_kid_is_torch_fidelitys(condition, size):
    """Mean and standard deviation over the very same subsets, above and below the dimension."""
    theirs, torch = peer("torch_fidelity.metric_kid"), peer("torch")
    generated, real = features(150, 40, condition, 0.3, seed=5), features(120, 40, condition, seed=6)
    asked = {"kid_subsets": 10, "kid_subset_size": size, "rng_seed": 2020, "verbose": False}
    expected = theirs.kid_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), **asked)
    found = metrics.kid(generated, real, subsets=10, subset_size=size)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


def test_kid_is_unbiased():
    """Two samples of one distribution: the mean over many is 0 within its error, where FID is far above."""
    values = [metrics.cubic_mmd(features(20, 8, seed=2 * n), features(20, 8, seed=2 * n + 1)) for n in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 300**0.5


@pytest.mark.parametrize("shuffle", [False, True])
def test_inception_score_is_torch_fidelitys(shuffle):
    theirs, torch = peer("torch_fidelity.metric_isc"), peer("torch")
    logits = np.float32(3 * features(1003, 20, seed=7))
    expected = theirs.isc_features_to_metric(torch.from_numpy(logits), 10, shuffle, 2020)
    found = metrics.inception_score(logits, splits=10, shuffle_seed=2020 if shuffle else None)
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-6)


def test_inception_score_of_splits_of_a_size():
    """The last split is smaller; logits of any size do not overflow."""
    logits = 500 * features(130, 10, seed=8)
    parts = [metrics.inception_score(logits[start : start + 50], splits=1).mean for start in (0, 50, 100)]
    found = metrics.inception_score(logits, split_size=50)
    assert found.mean == pytest.approx(np.mean(parts)) and found.std == pytest.approx(np.std(parts))
    assert 1 < found.mean < 10


# Precision and recall -----------------------------------------------------------------------------------------------------


def brute(generated: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    """All distances by differences in float64."""
    generated, real = generated.astype(np.float64), real.astype(np.float64)
    between = ((generated[:, None] - real[None]) ** 2).sum(-1)
    radii = [np.sort(((rows[:, None] - rows[None]) ** 2).sum(-1), axis=1)[:, k] for rows in (generated, real)]
    return (between <= radii[1]).any(1).mean(), (between <= radii[0][:, None]).any(0).mean()


def shared_and_repeated(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sets that share points, and in which points repeat: distances that are equal, or exactly 0."""
    generated, real = generated.copy(), real.copy()
    generated[:30] = real[:30]
    generated[30:50], real[-20:] = generated[30], real[-1]
    return generated, real


@pytest.mark.parametrize("tile", [None, 64])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_precision_and_recall_are_those_of_float64(tile, k, offset):
    """Float32 far from zero has no digits left for these distances, unless it is centred."""
    for width, sizes in ((4, (200, 150)), (48, (180, 260))):
        generated, real = (features(n, width, 10.0, offset, seed=n).astype(np.float32) for n in sizes)
        generated, real = shared_and_repeated(generated, real)
        found = metrics.precision_recall(generated, real, k=k, tile=tile)
        assert tuple(found) == pytest.approx(brute(generated, real, k), abs=1e-12), (width, found)


def test_distances_that_float32_cannot_tell_apart():
    """Points on a line whose differences lie below float32: every answer comes from float64."""
    rng = np.random.default_rng(0)
    near = 1e-7 * rng.standard_normal((120, 3)) + np.eye(3)[rng.integers(3, size=120)]
    generated, real = near[:50], near[50:]
    found = metrics.precision_recall(generated, real)
    assert tuple(found) == pytest.approx(brute(generated, real, 3), abs=1e-12)
    assert 0.3 < found.precision < 1


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_float64_is_asked_for_few_pairs(spread, monkeypatch):
    """Far from zero and in a collapsed set too: sets are centred before float32 sees them."""
    asked, exact = [], manifolds._exact
    monkeypatch.setattr(manifolds, "_exact", lambda *args: asked.append(len(args[2])) or exact(*args))
    metrics.precision_recall(spread * features(300, 16, seed=1) + 100, features(300, 16) + 100)
    candidates = 3 + 1 + manifolds._SPARE
    assert sum(asked) < 600 * candidates + 60, asked


def test_precision_and_recall_are_torch_fidelitys():
    theirs, torch = peer("torch_fidelity.metric_prc"), peer("torch")
    generated, real = features(300, 16, 10.0, seed=9), 1.3 * features(250, 16, 10.0, seed=10)
    expected = theirs.calculate_precision_recall_full(torch.from_numpy(generated), torch.from_numpy(real), 3)
    assert tuple(metrics.precision_recall(generated, real)) == pytest.approx(expected, rel=1e-6)


def half_brute(generated: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    """Squared distances with every step stored as float16, in numpy's own float16."""

    def distances(u, v):
        u, v = u.astype(np.float16), v.astype(np.float16)
        square = lambda x: (x**2).astype(np.float32).sum(1).astype(np.float16)  # noqa: E731
        product = np.float16(2) * (u.astype(np.float32) @ v.T.astype(np.float32)).astype(np.float16)
        return np.maximum(square(u)[:, None] - product + square(v), np.float16(0))

    between = distances(real, generated)
    radii = [np.sort(distances(rows, rows), axis=1)[:, k] for rows in (generated, real)]
    return (between <= radii[1][:, None]).any(0).mean(), (between <= radii[0]).any(1).mean()


@pytest.mark.parametrize("tile", [None, 70])
def test_the_adm_variant_rounds_to_float16(tile):
    generated, real = (3 * features(n, 64, seed=n) + 2 for n in (200, 150))  # squared distances of about 1000: steps of 1
    found = metrics.precision_recall(generated, real, variant="adm", tile=tile)
    assert tuple(found) == pytest.approx(half_brute(generated, real, 3), abs=1e-12)
    assert tuple(found) != pytest.approx(brute(generated, real, 3), abs=1e-3)


def test_the_adm_variant_where_float16_overflows():
    """Tiles with squared distances above 65504 fall back to float32."""
    generated, real = (300 * features(n, 16, seed=n) for n in (200, 150))
    found = metrics.precision_recall(generated, real, variant="adm")
    assert tuple(found) == pytest.approx(brute(generated, real, 3), abs=1e-12)


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    real = features(400, 8)
    for generated in (np.repeat(real[:1], 400, axis=0), real[:1] + 1e-6 * features(400, 8, seed=1)):
        assert metrics.precision_recall(generated, real) == (1.0, pytest.approx(0, abs=1 / 399))


# Images -------------------------------------------------------------------------------------------------------------------


def noisy_images(channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (4, 24, 17, channels)).astype(np.uint8)
    noise = rng.integers(-40, 41, images.shape) * np.arange(1, 5).reshape(4, 1, 1, 1) // 4
    return images, np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_are_scikit_images(channels):
    skimage = pytest.importorskip("skimage.metrics", reason="compares with scikit-image, which is not installed")
    images, references = noisy_images(channels)
    asked = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": -1}
    pairs = list(zip(references, images, strict=True))
    expected = [skimage.structural_similarity(*pair, **asked) for pair in pairs]
    np.testing.assert_allclose(metrics.ssim(images, references), expected, rtol=1e-9)
    expected = [skimage.peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]
    np.testing.assert_allclose(metrics.psnr(images, references), expected, rtol=1e-9)


def test_equal_images():
    images, _ = noisy_images(3)
    assert np.isinf(metrics.psnr(images, images)).all()
    np.testing.assert_allclose(metrics.ssim(images, images), 1)


def test_consistency_is_the_error_of_the_downsampled_image():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 250, (70, 5, 4, 3)).astype(np.uint8)
    images = low.repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_allclose(metrics.consistency(images, low), 0, atol=1e-12)
    np.testing.assert_allclose(metrics.consistency(images + np.uint8(5), low), (5 / 255) ** 2, rtol=1e-5)


# CLIP ---------------------------------------------------------------------------------------------------------------------


def test_clip_scores_by_hand():
    images, texts = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [0.0, -5.0], [4.0, 0.0]])
    cosines = [1.0, -1.0, 0.5**0.5]
    clipped = (1 + 0.5**0.5) / 3
    assert metrics.clip_score(images, texts) == pytest.approx(100 * clipped)
    assert metrics.clip_score(images, texts, definition="clipscore") == pytest.approx(2.5 * clipped)
    glide = metrics.clip_score(images, texts, definition="glide", logit_scale=100.0)
    assert glide == pytest.approx(100 * np.mean(cosines))


# Bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: metrics.kid(x, x[:, :3], subset_size=4), DataError, "different widths: 4 and 3"),
        (lambda x: metrics.kid(x, x), DataError, "use subset_size=8"),
        (lambda x: metrics.kid(x, x, subsets=0), ConfigError, "at least 1"),
        (lambda x: metrics.cubic_mmd(x[:1], x), DataError, "at least 2 samples"),
        (lambda x: metrics.kid(x * np.nan, x), DataError, "8 of 8 rows"),
        (lambda x: metrics.inception_score(x[0]), DataError, r"logits must be \[N, D\]"),
        (lambda x: metrics.inception_score(x, splits=9), ConfigError, "8 images cannot have 9 splits"),
        (lambda x: metrics.precision_recall(x, x, variant="admm"), ConfigError, "did you mean 'adm'"),
        (lambda x: metrics.precision_recall(x, x, k=8), DataError, "more than 8 samples"),
        (lambda x: metrics.precision_recall(x, np.where(x > 1, np.inf, x)), DataError, "real features are NaN"),
        (lambda x: metrics.psnr(x, x), DataError, "must be uint8"),
        (lambda x: metrics.psnr(*(np.zeros((1, 12, s, 1), np.uint8) for s in (12, 13))), DataError, "different shapes"),
        (lambda x: metrics.ssim(*2 * [np.zeros((1, 10, 12, 1), np.uint8)]), DataError, "at least 11 x 11"),
        (lambda x: metrics.consistency(*(np.zeros((n, 4, 4, 1), np.uint8) for n in (2, 3))), DataError, "do not belong"),
        (lambda x: metrics.clip_score(x, x, definition="clip"), ConfigError, "definition of the CLIP score: unknown .clip."),
        (lambda x: metrics.clip_score(x, x, definition="glide"), ConfigError, "logit_scale"),
        (lambda x: metrics.clip_score(x, x[:3]), DataError, "8 images and 3 captions"),
        (lambda x: metrics.clip_score(x, 0 * x), DataError, "have no direction"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(features(8, 4))
