"""Degradations: moments, hand-derived values, and every way in which they can be misused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal

from diffusion_jax.data import degradations as deg
from diffusion_jax.data.degradations import bsr
from diffusion_jax.data.sources import Photographs
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.registry import build


@pytest.fixture(scope="module")
def photographs():
    return [Photographs("test", size=64)[i]["image"] for i in range(12)]


def _psnr(a, b):
    return -10 * math.log10(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2) / 255**2)


def test_resizing_keeps_constants_lines_and_means():
    line = np.linspace(0, 1, 32, dtype=np.float32)[None, :, None].repeat(8, 0)
    for method in ("area", "bilinear", "bicubic"):
        small = deg.resize(line, (4, 16), method)
        assert small.shape == (4, 16, 1) and small.dtype == np.float32
        expected = (np.arange(16) + 0.25) / 15.5  # the line at the middle of each pair of pixels
        np.testing.assert_allclose(small[1, 4:-4, 0], expected[4:-4], atol=1e-5)
    np.testing.assert_allclose(deg.resize(line, (4, 16), "area").mean(), line.mean(), atol=1e-6)
    point = np.zeros((4, 16, 1), np.float32)
    point[:, 7] = 1  # half a pixel before the middle of the fourth of eight
    for method, weights in (("area", [0, 0.5, 0]), ("bilinear", [0, 0.375, 0.125])):  # a box; a triangle twice as wide
        np.testing.assert_allclose(deg.resize(point, (4, 8), method)[0, 2:5, 0], weights, atol=1e-6)


def test_reducing_and_enlarging_use_one_method():
    image = np.random.default_rng(0).random((16, 8, 3), np.float32)
    means = image.reshape(4, 4, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(deg.down_up(image, (4, 4), "area"), np.kron(means, np.ones((4, 2, 1))), atol=1e-6)
    assert deg.down_up(image, (12, 6)).shape == image.shape
    for size in ((17, 8), (4, 9)):
        with pytest.raises(DataError, match=f"8x16 is already smaller than the low-resolution size {size[1]}x{size[0]}"):
            deg.down_up(image, size)


def test_bicubic_is_keys_cubic_and_is_not_clipped():
    step = np.repeat(np.array([0.0, 0.0, 1.0, 1.0], np.float32), 2)[None, :, None].repeat(4, 0)
    enlarged = deg.resize(step, (4, 16), "bicubic")
    kernel = lambda d: 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2  # noqa: E731
    assert enlarged.max() > 1.01 and enlarged.min() < -0.01
    position = 8  # centre at (8 + 0.5) / 2 - 0.5 = 3.75: samples 2, 3 are 0, samples 4, 5 are 1
    assert enlarged[0, position, 0] == pytest.approx(kernel(0.25) + kernel(1.25), abs=1e-5)


def test_an_image_that_is_already_smaller(photographs):
    with pytest.raises(DataError, match="64x64 is already smaller than the low-resolution size 65x65"):
        deg.down_up(photographs[0] / 255.0, (65, 65))
    with pytest.raises(DataError, match="already smaller"):
        deg.bsr_light(80)(photographs[0], np.random.default_rng(0))
    with pytest.raises(ConfigError, match="did you mean 'bicubic'"):
        deg.resize(np.zeros((4, 4, 1)), (2, 2), "bicubc")


@pytest.mark.parametrize("name", ["bsr", "bsr_light"])
def test_random_chains_reduce_rectangles(name):
    image = Photographs(size=(36, 60))[0]["image"]
    for seed in range(6):
        chain = build("degradation", {"name": name, "low_res_size": (12, 15)})
        assert chain(image, np.random.default_rng(seed))["low_res"].shape == (12, 15, 3)
    with pytest.raises(ConfigError, match="low_res_size must be a whole number at least 1"):
        build("degradation", {"name": name, "low_res_size": 0})


@pytest.mark.parametrize(("sigma", "angle"), [(1.7, 0.0), ((3.0, 1.0), 0.0), ((3.0, 1.0), math.pi / 6)])
def test_kernels_have_the_moments_of_their_gaussian(sigma, angle):
    kernel = deg.gaussian_kernel(41, sigma, angle, shift=1.5)
    rows, columns = np.indices(kernel.shape) - 20
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * rows).sum() == pytest.approx(1.5, abs=1e-6) and (kernel * columns).sum() == pytest.approx(1.5, abs=1e-6)
    first, second = (sigma, sigma) if isinstance(sigma, float) else sigma
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    covariance = turn @ np.diag([first**2, second**2]) @ turn.T  # of (columns, rows)
    offsets = np.stack([columns - 1.5, rows - 1.5])
    np.testing.assert_allclose(np.einsum("ihw,jhw,hw->ij", offsets, offsets, kernel), covariance, atol=2e-3)


def test_blur_spreads_a_point_and_keeps_its_mass():
    point = np.zeros((21, 21, 2), np.float32)
    point[10, 10] = 1
    kernel = deg.gaussian_kernel(7, (2.0, 0.7), 0.4)
    np.testing.assert_allclose(deg.blur(point, kernel)[7:14, 7:14, 1], kernel[::-1, ::-1], atol=1e-6)
    image, kernel = np.random.default_rng(0).random((12, 9, 2)), deg.gaussian_kernel(5, (2.0, 0.7), 0.4, shift=0.5)
    mirrored = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = [signal.correlate2d(channel, kernel, mode="valid") for channel in np.moveaxis(mirrored, -1, 0)]
    np.testing.assert_allclose(deg.blur(image, kernel), np.stack(expected, -1), atol=1e-6)
    with pytest.raises(ConfigError, match="must be odd"):
        deg.gaussian_kernel(4, 1.0)
    with pytest.raises(ConfigError, match="positive"):
        deg.gaussian_kernel(5, 0.0)


def test_jpeg_is_worse_at_lower_quality_and_refuses_qualities_out_of_range(photographs):
    fidelity = [np.mean([_psnr(image, deg.compress(image, q)) for image in photographs]) for q in (5, 30, 95)]
    assert fidelity[0] + 2 < fidelity[1] < fidelity[2] - 2
    assert deg.compress(photographs[0][..., :1], 50).shape == (64, 64, 1)
    for quality in (0, 101, -3, 30.5):
        with pytest.raises(ConfigError, match="whole number from 1 to 100"):
            deg.compress(photographs[0], quality)
    for quality in ((0, 30), (5, 101), (30, 5), (5,)):
        with pytest.raises(ConfigError, match="quality must be .* 1 <= from <= to <= 100"):
            deg.Jpeg(quality)
    with pytest.raises(ConfigError, match="uint8"):
        deg.compress(photographs[0] / 255, 50)


def test_jpeg_keeps_stripes_of_a_pixel_in_luma_and_mixes_them_in_colour():
    red, blue = np.array([180, 100, 100]), np.array([123, 110, 190])  # of one luma, within half a level
    coloured, bright = (np.tile(np.stack(pair), (16, 8, 1)).astype(np.uint8) for pair in ((red, blue), (red // 2, red)))
    contrast = lambda image: np.abs(np.diff(image.astype(float), axis=1)).mean()  # noqa: E731
    assert contrast(deg.compress(coloured, 100)) < 3 < 50 < contrast(coloured)
    assert contrast(deg.compress(bright, 100)) > 0.9 * contrast(
        np.tile(np.stack([red // 2, red]) @ [0.299, 0.587, 0.114], (16, 8))
    )


def test_qualities_are_drawn_with_palettes_probabilities():
    rng = np.random.default_rng(0)
    counts = np.bincount([deg.draw_quality(rng) for _ in range(20_000)], minlength=40)
    assert counts[:5].sum() == 0 and counts[31:].sum() == 0
    # A geometric law: each quality e^(-1/10) times as likely as the one before.
    expected = math.exp(-0.1) ** np.arange(26)
    expected *= 20_000 / expected.sum()
    assert (((counts[5:31] - expected) ** 2) / expected).sum() < 50  # chi squared of 25 degrees of freedom
    with pytest.raises(ConfigError, match="quality must be .* 1 <= from <= to <= 100"):
        deg.draw_quality(rng, (30, 101))


def test_noise_has_its_deviation_and_correlation():
    rng, image = np.random.default_rng(0), np.full((200, 200, 3), 0.5, np.float32)
    noise = {kind: deg.gaussian_noise(image, 0.05, rng, kind) - 0.5 for kind in ("colour", "grey")}
    np.testing.assert_allclose([each.std() for each in noise.values()], 0.05, rtol=0.02)
    assert abs(np.corrcoef(noise["colour"].reshape(-1, 3).T)[0, 1]) < 0.02
    np.testing.assert_array_equal(noise["grey"][..., 0], noise["grey"][..., 2])
    correlated = [deg.gaussian_noise(image, 0.05, np.random.default_rng(i), "correlated") - 0.5 for i in range(20)]
    values = np.sqrt([np.linalg.eigvalsh(np.cov(each.reshape(-1, 3).T)) for each in correlated])
    assert values.max() < 0.0515 and values[:, 2].mean() > 1.5 * values[:, 0].mean()
    assert np.mean([abs(np.corrcoef(each.reshape(-1, 3).T)[0, 1]) for each in correlated]) > 0.1
    # Variances along the axes are uniform up to 0.05^2, and turning the axes keeps their sum.
    few = [deg.gaussian_noise(image[:32, :32], 0.05, np.random.default_rng(i), "correlated") - 0.5 for i in range(200)]
    assert np.mean(np.square(few)) == pytest.approx(0.05**2 / 2, rel=0.08)
    black = deg.gaussian_noise(np.stack([np.zeros((8, 8)), np.ones((8, 8))], -1), 1.0, rng)
    assert black.min() == 0 and black.max() == 1
    with pytest.raises(ConfigError, match="did you mean 'grey'"):
        deg.gaussian_noise(image, 0.1, rng, "gry")


def test_the_random_chain_keeps_its_order_and_the_light_one_is_kinder(photographs):
    hard, light, rng = deg.Bsr(16), deg.bsr_light(16), np.random.default_rng(0)
    for _ in range(50):
        order = hard._order(rng)
        assert order.index("random_resize") < order.index("exact_resize") and sorted(order) == sorted(
            ["blur", "blur", "random_resize", "exact_resize", "noise", "jpeg"]
        )
    assert len({tuple(hard._order(rng)) for _ in range(50)}) > 20
    clean = [np.clip(deg.resize(image / 255.0, (16, 16)) * 255, 0, 255) for image in photographs]
    fidelity = {}
    for name, chain in (("hard", hard), ("light", light)):
        made = [chain(image, np.random.default_rng(i))["low_res"] for i, image in enumerate(photographs)]
        assert made[0].shape == (16, 16, 3) and made[0].dtype == np.uint8
        np.testing.assert_array_equal(made[3], chain(photographs[3], np.random.default_rng(3))["low_res"])
        fidelity[name] = np.mean([_psnr(a, b) for a, b in zip(made, clean, strict=True)])
    assert fidelity["hard"] + 1 < fidelity["light"]
    with pytest.raises(ConfigError, match="quality"):
        deg.Bsr(16, quality=(30, 101))


def _line() -> np.ndarray:
    """Each pixel's value is its column, of 64."""
    return np.broadcast_to(np.arange(64, dtype=np.float32)[None, :, None] / 63, (64, 64, 1))


def test_the_random_resize_leaves_all_in_its_place():
    chain, decimated = deg.Bsr(16), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        small = 63 * chain._random_resize(_line(), 4.0, rng)[..., 0]
        width = small.shape[1]
        middle = slice(width // 2 - 1, width // 2 + 1)
        np.testing.assert_allclose(
            small[len(small) // 2, middle], ((np.arange(width) + 0.5) * 64 / width - 0.5)[middle], atol=0.6
        )
        decimated += np.random.default_rng(seed).random() >= 0.75
    assert decimated > 4


def test_the_random_blurs_have_the_published_widths(monkeypatch):
    drawn, kernel = [], deg.gaussian_kernel
    monkeypatch.setattr(bsr, "gaussian_kernel", lambda size, *args: drawn.append((size, args)) or kernel(size, *args))
    for chain, strength in ((deg.Bsr(16), 1.0), (deg.bsr_light(16), 0.25)):
        drawn.clear()
        rng = np.random.default_rng(0)
        for _ in range(1000):
            chain._blur(np.zeros((4, 4, 1), np.float32), 5.0, rng)
        round_ones = [args[0] for _, args in drawn if len(args) == 1]
        slanted = np.array([(*args[0], args[1]) for _, args in drawn if len(args) == 2])
        assert {size for size, _ in drawn} == set(range(7, 26, 2)) and 400 < len(slanted) < 600
        assert 0.1 <= min(round_ones) < 0.2 and 0.95 < max(round_ones) / (3 * strength) <= 1  # 2 + 5 / 5
        assert 0.1 <= slanted[:, :2].min() < 0.2
        assert (0.95 * 9 * strength < slanted[:, :2].max(0)).all() and slanted[:, :2].max() <= 9 * strength  # 4 + 5
        assert slanted[:, 2].min() < 0.1 and 3.0 < slanted[:, 2].max() <= math.pi


def test_the_chains_noise_compression_and_halving_are_what_was_asked(photographs, monkeypatch):
    rng, flat, image = np.random.default_rng(0), np.full((64, 64, 3), 0.5, np.float32), photographs[0] / np.float32(255)
    deviations = [255 * (deg.Bsr(16, noise=(10, 10))._noise(flat, 4.0, rng) - 0.5).std() for _ in range(50)]
    assert np.median(deviations) == pytest.approx(10, rel=0.03) and max(deviations) < 10.5  # four of five have all of it
    assert deg.Bsr(16, jpeg=0.0)._jpeg(image, 4.0, rng) is image
    compressed = deg.Bsr(16, jpeg=1.0, quality=(40, 40))._jpeg(image, 4.0, rng)
    np.testing.assert_array_equal(np.round(255 * compressed), deg.compress(photographs[0], 40))
    monkeypatch.setattr(deg.Bsr, "_order", lambda self, rng: ["exact_resize"])
    monkeypatch.setattr(bsr, "resize", lambda image, size, method: sizes.append(size) or np.zeros((*size, 3), np.float32))
    for low_res, wanted in ((16, [(32, 32), (16, 16)]), (48, [(48, 48)])):  # never below what was asked for
        sizes = []
        deg.Bsr(low_res, halve=1.0)(photographs[0], rng)
        assert sizes == wanted
