"""Time grids against published indices and levels."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, schedules
from diffusion_jax.registry import build, known
from diffusion_jax.sampling import grids, times

CHAIN = Process("linear")
CONTINUOUS = Process("vp_sde")


def indices(grid, process=CHAIN):
    """The visited indices, ascending."""
    found = grid(process)
    assert found[-1] == 0 and found[0] <= 1 and (np.diff(found) < 0).all() and found.dtype == np.float64
    exact = found[:-1] * process.num_steps - 1
    np.testing.assert_allclose(exact, np.round(exact), atol=1e-9)
    return np.round(exact).astype(int)[::-1].tolist()


def test_times_is_another_name():
    assert times is grids


@pytest.mark.parametrize(
    ("spacing", "head", "tail"),
    [
        ("10", [0, 111, 222, 333, 444], [555, 666, 777, 888, 999]),
        ("25", [0, 42, 83, 125, 166, 208], [874, 916, 957, 999]),
        ("50", [0, 20, 41, 61, 82, 102], [938, 958, 979, 999]),
        ("250", [0, 4, 8], [991, 995, 999]),
        ("ddim25", [0, 40, 80], [880, 920, 960]),
        ("1000", [0, 1, 2], [998, 999]),
        ("10,10,10", [0, 37, 74, 111, 148, 185, 222, 259, 296, 333, 334, 371], [962, 999]),
    ],
)
def test_respacing(spacing, head, tail):
    """Dhariwal & Nichol 2021 and their programs' sampling flags."""
    found = indices(grids.respaced(spacing))
    assert found[: len(head)] == head and found[-len(tail) :] == tail
    assert len(found) == sum(int(count) for count in spacing.removeprefix("ddim").split(","))


def test_ties_fall_as_in_published_chains():
    """20 steps of a summed 999 / 20 = 49.95: the tenth, 499.5, carries the sum's rounding error and falls below."""
    total, expected = 0.0, []
    for _ in range(21):
        expected.append(round(total))
        total += 999 / 20
    assert indices(grids.respaced("21")) == expected
    assert expected != [round(k * (999 / 20)) for k in range(21)]


@given(st.integers(2, 1000), st.integers(2, 1000))
def test_uniform_includes_both_ends_and_is_even(count, steps):
    assume(count <= steps)
    found = indices(grids.uniform(count), Process(schedules.from_betas(np.full(steps, 0.01))))
    assert len(found) == count and found[0] == 0 and found[-1] == steps - 1
    gaps = np.diff(found)
    assert gaps.max() - gaps.min() <= 1
    assert found == indices(grids.respaced(str(count)), Process(schedules.from_betas(np.full(steps, 0.01))))


@given(st.integers(1, 1000))
def test_trailing_starts_at_the_last_index(count):
    found = indices(grids.trailing(count))
    assert len(found) == count and found[-1] == 999
    assert np.abs(np.diff([-1, *found]) - 1000 / count).max() <= 1


def test_index_rules():
    assert indices(grids.trailing(10)) == [99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert indices(grids.leading(10)) == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert indices(grids.leading(300))[-1] == 299 * 3
    assert indices(grids.quadratic(10)) == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    quadratic = indices(grids.quadratic(20))
    assert quadratic[:6] == [0, 2, 8, 19, 35, 55] and quadratic[-3:] == [640, 718, 800]
    assert [len(indices(grids.quadratic(count))) for count in (50, 100)] == [49, 96]  # duplicates are left out
    assert indices(grids.uniform(1)) == [999]


def test_rules_in_continuous_time():
    np.testing.assert_allclose(grids.uniform(4)(CONTINUOUS), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(grids.trailing(4)(CONTINUOUS), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(grids.leading(4)(CONTINUOUS), [0.75, 0.5625, 0.375, 0.1875, 0])
    np.testing.assert_allclose(grids.quadratic(4)(CONTINUOUS), [0.8, 0.45, 0.2, 0.05, 0])


def test_karras_levels():
    """Karras et al. 2022, N = 18 and 40 on their own schedule."""
    process = Process("edm", "edm")
    level = lambda count: process.schedule.alpha_sigma(grids.karras(count)(process))[1]  # noqa: E731
    published = [
        *(80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.4009353, 5.3151945, 3.2568215, 1.9233398),
        *(1.0881706, 0.58534812, 0.29644228, 0.13951647, 0.059947311, 0.022934518, 0.0075280200, 0.002, 0),
    ]
    np.testing.assert_allclose(level(18), published, rtol=1e-6)
    np.testing.assert_allclose(level(40)[:3], [80, 69.450946, 60.117395], rtol=1e-6)
    np.testing.assert_allclose(level(40)[-4:], [0.0064371, 0.0036766, 0.002, 0], rtol=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp_sde", "edm", "straight_line", "cosine_continuous"])
def test_karras_levels_on_every_schedule(schedule):
    process = Process(schedule, "x0")
    found = grids.karras(9, sigma_min=0.02, sigma_max=20.0, rho=3.0)(process)
    assert found.dtype == np.float64 and found[-1] == 0
    roots = np.exp(-0.5 * process.schedule.log_snr(found[:-1])) ** (1 / 3)
    np.testing.assert_allclose(roots, np.linspace(20 ** (1 / 3), 0.02 ** (1 / 3), 9), rtol=1e-6)
    default = grids.karras(9)(process)
    levels = np.exp(-0.5 * process.schedule.log_snr(default[[0, -2]]))
    assert len(default) == 10 and 0.0019 < levels[1] < 0.02 and 70 < levels[0] < 81


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp_sde", "edm", "straight_line", "zero_terminal_snr"])
def test_even_steps_in_log_snr(schedule):
    process = Process(schedule, "x0")
    found = grids.log_snr(9, lowest=-7.0, highest=5.0)(process)
    assert found.dtype == np.float64 and found[-1] == 0
    np.testing.assert_allclose(process.schedule.log_snr(found[:-1]), np.linspace(-7.0, 5.0, 9), atol=1e-6)
    default = process.schedule.log_snr(grids.log_snr(9)(process)[:-1])
    np.testing.assert_allclose(np.diff(default, 2), 0.0, atol=1e-6)
    assert -20.001 < default[0] < -8 and 6 < default[-1] < 20.001
    if schedule == "edm":  # trained from 0.002 on
        np.testing.assert_allclose(default[-1], -2 * np.log(0.002))


def test_given_indices_and_times():
    assert indices(grids.indices((999, 759, 499, 259))) == [259, 499, 759, 999]
    np.testing.assert_allclose(grids.times([1.0, 0.6, 0.3])(CONTINUOUS), [1, 0.6, 0.3, 0])
    np.testing.assert_allclose(grids.times([0.6, 0.0])(CHAIN), [0.6, 0])


def test_rules_of_dpm_solver():
    """By hand; test_scheduler_parity holds them to public libraries."""
    assert indices(grids.dpm_solver(3)) == [333, 666, 999]
    assert indices(grids.dpm_solver(3, "leading", offset=1)) == [251, 501, 751]
    # ((1 - i (1 - sqrt(0.001)) / 4))^2 of 1000, less one, for i = 0 to 3
    assert indices(grids.dpm_solver(4, "time_quadratic")) == [74, 265, 573, 999]
    np.testing.assert_allclose(grids.dpm_solver(3)(CONTINUOUS), [1, 0.667, 0.334, 0])
    np.testing.assert_allclose(grids.dpm_solver(3, "leading")(CONTINUOUS), [0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(grids.lcm(4)(CONTINUOUS), [1, 0.76, 0.5, 0.26, 0])


def test_latent_diffusion_counts_from_one():
    """The published 50 indices: 1, 21, ..., 981."""
    assert indices(grids.leading(50, offset=1)) == list(range(1, 982, 20))


NOT_OF_ANY = ("respaced", "levels", "indices", "times", "lcm", "flow")  # length, or process
OF_ANY_LENGTH = [name for name in known("grid") if name in dir(grids) and name not in NOT_OF_ANY]


@given(st.sampled_from(OF_ANY_LENGTH), st.integers(2, 200))
def test_grids_descend_to_zero(name, count):
    for process in (CHAIN, CONTINUOUS):
        found = build("grid", name, num_steps=count)(process)
        assert found.dtype == np.float64 and found[-1] == 0 and 0 < found[0] <= 1 and (np.diff(found) < 0).all()
        assert len(found) == count + 1 or name == "quadratic"


UNREADABLE = ["", "ten", "10,", "10;10", "-5", "0", "ddim", "ddim5,5", "2.5", "fast27", "²"]


@pytest.mark.parametrize("spacing", UNREADABLE)
def test_unreadable_spacings(spacing):
    with pytest.raises(ConfigError, match="cannot read"):
        grids.respaced(spacing)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.respaced("1001")(CHAIN), "1001 steps of a section that has 1000"),
        (lambda: grids.respaced("10,10,500")(CHAIN), "500 steps of a section that has 333"),
        (lambda: grids.respaced("ddim999")(CHAIN), "no integer stride"),
        (lambda: grids.respaced("10")(CONTINUOUS), "continuous"),
        (lambda: grids.uniform(1001)(CHAIN), "1001 steps of a chain that has 1000"),
        (lambda: grids.trailing(1001)(CHAIN), "chain that has 1000"),
        (lambda: grids.leading(1001)(CHAIN), "chain that has 1000"),
        (lambda: grids.quadratic(1001)(CHAIN), "chain that has 1000"),
        (lambda: grids.uniform(0), "at least 1"),
        (lambda: grids.leading(1), "at least 2"),
        (lambda: grids.quadratic(1), "at least 2"),
        (lambda: grids.leading(5, offset=-1), "'leading': offset must be a whole number at least 0, got -1"),
        (lambda: grids.uniform(2.5), "num_steps must be a whole number"),
        (lambda: grids.dpm_solver(1000)(CHAIN), "1001 steps of a chain that has 1000"),
        (lambda: grids.dpm_solver(4, "logSNR"), "spacing must be one of 'time_uniform', 'time_quadratic', 'leading'"),
        (lambda: grids.dpm_solver(499, "leading", offset=3)(CHAIN), "takes the last index to 1001"),
        (lambda: grids.lcm(51), "51 steps of 50 original ones"),
        (lambda: grids.lcm(4, 2000)(CHAIN), "2000 steps of a chain that has 1000"),
        (lambda: grids.indices([10, 10]), "descending order"),
        (lambda: grids.indices([10, 2.5]), "indices must be a list of whole numbers at least 0"),
        (lambda: grids.indices([1000, 10])(CHAIN), "1000 lies beyond 999, the chain's last index"),
        (lambda: grids.indices([10])(CONTINUOUS), "the process is continuous"),
        (lambda: grids.times([0.5, 0.7]), "descending order"),
        (lambda: grids.times([1.5, 0.7]), r"times must be a list of numbers in \[0, 1\]"),
        (lambda: grids.times([0.0]), "descending order"),
        (lambda: grids.flow(4)(CHAIN), "'flow' is of flow matching"),
        (lambda: grids.flow(4, shift=3.0, tokens=256), "give one of them"),
        (lambda: grids.levels([3.0, -1.0]), "levels must be a list of numbers above 0"),
        (lambda: grids.leading(1000, offset=1)(CHAIN), "last index to 1000"),
        (lambda: grids.log_snr(0), "at least 1"),
        (lambda: grids.log_snr(5, lowest=3.0, highest=1.0)(CHAIN), "lowest < highest"),
        (lambda: grids.log_snr(5, lowest=-30.0)(CHAIN), "below -10.1"),
        (lambda: grids.karras(0), "at least 1"),
        (lambda: grids.karras(5, rho=0.0), "rho"),
        (lambda: grids.karras(5, sigma_min=3.0, sigma_max=1.0)(CHAIN), "sigma_min < sigma_max"),
        (lambda: grids.karras(5, sigma_max=1000.0)(CHAIN), "above 157"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_one_karras_step_starts_at_the_largest_level():
    process = Process("edm", "edm")
    np.testing.assert_allclose(grids.karras(1)(process), [1.0, 0.0])


def test_sections_partition_the_chain():
    """Every section has its count of indices, within its own range."""
    found = indices(grids.respaced("5,1,7"))
    bounds = [0, 334, 667, 1000]
    counts = [sum(low <= i < high for i in found) for low, high in itertools.pairwise(bounds)]
    assert counts == [5, 1, 7] and 334 in found  # a section of one index takes its first
