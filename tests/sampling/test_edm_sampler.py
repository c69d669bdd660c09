"""EDM's samplers beside the paper's algorithms, written in numpy float64 and fed the same noise; its time steps in numbers."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Denoiser, Process, edm_design
from diffusion_jax.registry import build
from diffusion_jax.sampling import edm_design as sampling_design
from diffusion_jax.sampling import grids, sample, solvers
from diffusion_jax.systems import Sampling
from tests.oracles import QUICK, covering, no_noise

MODE, VARIANCE = 0.7, 0.02
U = edm_design.iddpm_table()


def posterior_mean(xp, y, sigma):
    """E[x0 | y] of two narrow modes: far from linear in y."""
    total = VARIANCE + sigma**2
    return (sigma**2 * MODE * xp.tanh(MODE * y / total) + VARIANCE * y) / total


def denoiser(process):
    """The exact one of a process, through x = alpha y."""

    def function(x, t):
        alpha, sigma = (value[:, None] for value in process.alpha_sigma(t))
        x0 = posterior_mean(jnp, x / alpha, sigma / alpha)
        return Denoised(x0, (x - alpha * x0) / sigma)

    return Denoiser(function, process)


def levels_of(process, times):
    return np.exp(-0.5 * process.schedule.log_snr(np.asarray(times)))


# The steps ------------------------------------------------------------------------------------------------------------

PUBLISHED = [
    80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.4009353, 5.3151945, 3.2568215, 1.9233398, 1.0881706,
    0.58534812, 0.29644228, 0.13951647, 0.059947311, 0.022934518, 0.0075280200, 0.002, 0,
]  # fmt: skip


def test_edm_steps():
    process = Process("edm", "edm")
    np.testing.assert_allclose(levels_of(process, grids.karras(18)(process)), PUBLISHED, rtol=1e-7)
    forty = levels_of(process, grids.karras(40)(process))
    assert len(forty) == 41
    np.testing.assert_allclose(forty[[0, 1, 2]], [80, 69.450946, 60.117395], rtol=1e-7)
    np.testing.assert_allclose(forty[[-4, -3, -2, -1]], [0.0064371, 0.0036766, 0.002, 0], rtol=1e-4)


@pytest.mark.parametrize("home", ["own", "elsewhere"])
def test_steps_of_the_other_columns(home):
    """On a column's own process and on another: the levels are the same."""
    at = lambda name, own, **fields: (  # noqa: E731
        lambda process: levels_of(process, build("grid", {"name": name, "num_steps": 5, **fields})(process))
    )(Process(own if home == "own" else {"name": "ve", "sigma_max": 3e4}, "edm"))
    times = np.array([1, 0.75025, 0.5005, 0.25075, 0.001])
    vp = np.sqrt(np.exp(19.9 * times**2 / 2 + 0.1 * times) - 1)
    np.testing.assert_allclose(at("edm_vp", "vp_sde"), [*vp, 0], rtol=1e-7)
    np.testing.assert_allclose(vp[[0, -1]], [152.16697, 0.010485993], rtol=1e-7)
    ve = [100 * 5000 ** (-i / 4) for i in range(5)]
    np.testing.assert_allclose(at("edm_ve", "ve"), [*ve, 0], rtol=1e-7)
    # Indices 8 + 991 i / 4 + 1/2, rounded down.
    np.testing.assert_allclose(at("edm_iddpm", "iddpm_levels"), [*U[[8, 256, 504, 751, 999]], 0], rtol=1e-7)


def test_vp_steps_between_other_levels_keep_the_times():
    """The refitted SDE has the wanted levels at its ends: sigma^2 + 1 = exp(bd t^2 / 2 + bm t)."""
    process = Process({"name": "edm", "sigma_max": 200.0}, "edm")
    found = levels_of(process, sampling_design.edm_vp(3, 0.002, 80.0)(process))
    t = 0.5005
    slope = 2 * (math.log(0.002**2 + 1) / 1e-3 - math.log(80**2 + 1)) / (1e-3 - 1)
    offset = math.log(80**2 + 1) - slope / 2
    np.testing.assert_allclose(found, [80, math.sqrt(math.exp(slope * t**2 / 2 + offset * t) - 1), 0.002, 0], rtol=1e-6)


def test_a_network_of_discrete_levels_is_asked_for_no_others():
    process = Process(**edm_design.column("iddpm")["process"])
    times = grids.karras(18, 0.002, 80.0)(process)
    found = levels_of(process, times)
    wanted = [U[np.argmin(np.abs(U[:-1] - level))] for level in PUBLISHED[:-1]]
    wanted = [*dict.fromkeys(wanted), 0]  # levels that meet are one step
    np.testing.assert_allclose(found[:-1], wanted[:-1], rtol=1e-9)
    assert process.noise_level(jnp.float32(times[0])) == 999 - 8


# The algorithms -------------------------------------------------------------------------------------------------------


def algorithm_2(
    x, levels, noise, churn=0.0, low=0.0, high=math.inf, deviation=1.0, rounded=lambda level: level, corrected=True
):
    """Algorithm 2 of the paper in y = x; with churn 0, algorithm 1."""
    steps = len(levels) - 1
    for i, (t, s) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        gamma = min(churn / steps, math.sqrt(2) - 1) if low <= t <= high else 0.0
        raised = rounded(t * (1 + gamma)) if gamma else t
        x = x + math.sqrt(max(raised**2 - t**2, 0)) * deviation * noise[i]
        d = (x - posterior_mean(np, x, raised)) / raised
        following = x + (s - raised) * d
        if s > 0 and corrected:
            d_next = (following - posterior_mean(np, following, s)) / s
            following = x + (s - raised) * (d + d_next) / 2
        x = following
    return x


CHURNS = {
    "deterministic": {},
    "churn-0": dict(s_churn=0.0, s_min=0.05, s_max=50.0, s_noise=1.003),
    "imagenet64": dict(s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003),
    "cifar10-vp": dict(s_churn=30.0, s_min=0.01, s_max=1.0, s_noise=1.007),
}
PROCESSES = {
    # Above the first level, so that churn has room.
    "edm": {"schedule": {"name": "edm", "sigma_max": 200.0}, "prediction": "edm"},
    "vp": edm_design.column("vp")["process"],
    "ve": edm_design.column("ve")["process"] | {"schedule": {"name": "ve", "sigma_max": 200.0}},
    "iddpm": edm_design.column("iddpm")["process"],
}


def noises(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the start, [16, 3], and of each step."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 3)), rng.normal(size=(count, 16, 3))


def run(solver, process, times, y, given=None) -> np.ndarray:
    """What a solver makes of y = x / alpha in float64, with given noise."""
    with jax.enable_x64(True):
        start = jnp.asarray(y * process.schedule.alpha_sigma(times[0])[0])
        program = lambda x: sample(  # noqa: E731
            denoiser(process), solver, times, jax.random.key(0), x.shape, initial=x, noise=given or {}
        )
        return np.asarray(jax.jit(program, compiler_options=QUICK)(start))


EULER, HEUN = solvers.euler, functools.partial(solvers.heun, space="sigma")


@pytest.mark.parametrize(("kind", "churn", "solver"), covering(PROCESSES, CHURNS, [HEUN, EULER]))
def test_algorithm_2_on_networks_of_every_column(kind, churn, solver):
    """sigma = sigma_t / alpha_t and y = x / alpha_t: a network of any column under EDM's sampler."""
    process, fields = Process(**PROCESSES[kind]), CHURNS[churn]
    grid = {"name": "karras", "num_steps": 18, "sigma_min": 0.002 if kind == "edm" else 0.02, "sigma_max": 80.0}
    times = build("grid", grid)(process)
    levels = levels_of(process, times)
    levels[-1] = 0
    y, noise = noises(len(times) - 1)
    given = {"churn": noise} if fields.get("s_churn") else {}
    found = run(solver(**fields), process, times, levels[0] * y, given)
    names = {"s_churn": "churn", "s_min": "low", "s_max": "high", "s_noise": "deviation"}
    nearest = (lambda level: U[np.argmin(np.abs(U[:-1] - level))]) if kind == "iddpm" else (lambda level: level)
    fields = {names[name]: value for name, value in fields.items()}
    wanted = algorithm_2(levels[0] * y, levels, noise, rounded=nearest, corrected=solver is HEUN, **fields)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def table_ode(y, taus, sigma, inverse, sigma_slope, s, s_slope, order, alpha, noise=(), churn=0.0, low=0.0, high=0.0):
    """Algorithm 3: equation 4's slope, the family of order 2 with its parameter, Euler at the end; with churn, if any.

    The form with churn is that of the paper's ablations, in x = s(t) y.
    """

    def slope(x, t):
        kept = sigma_slope(t) / sigma(t) + s_slope(t) / s(t)
        return kept * x - sigma_slope(t) * s(t) / sigma(t) * posterior_mean(np, x / s(t), sigma(t))

    x = s(taus[0]) * y
    for i, (t, following) in enumerate(zip(taus[:-1], taus[1:], strict=True)):
        if churn and low <= sigma(t) <= high:
            raised = inverse(sigma(t) * (1 + min(churn / (len(taus) - 1), math.sqrt(2) - 1)))
            x = s(raised) / s(t) * x + math.sqrt(sigma(raised) ** 2 - sigma(t) ** 2) * s(raised) * 1.003 * noise[i]
            t = raised
        h, d = following - t, slope(x, t)
        if order == 2 and following > 0:
            between = slope(x + alpha * h * d, t + alpha * h)
            d = (1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * between
        x = x + h * d
    return x  # s(0) = 1


def exponent(t):
    return 19.9 * t**2 / 2 + 0.1 * t


VP_SIGMA = lambda t: np.sqrt(np.exp(exponent(t)) - 1)  # noqa: E731
VP_SLOPE = lambda t: (19.9 * t + 0.1) * np.exp(exponent(t)) / (2 * VP_SIGMA(t))  # noqa: E731
VP_S = lambda t: np.exp(-exponent(t) / 2)  # noqa: E731
VP_S_SLOPE = lambda t: -(19.9 * t + 0.1) / 2 * VP_S(t)  # noqa: E731
ONE, ZERO = (lambda t: 1.0), (lambda t: 0.0)


VP_INVERSE = lambda level: (np.sqrt(0.01 + 39.8 * np.log1p(level**2)) - 0.1) / 19.9  # noqa: E731


@pytest.mark.parametrize(
    ("row", "rule", "churn"),
    covering(["vp", "vp-unscaled", "ve", "vp-on-edm"], [(1, 1.0), (2, 1.0), (2, 0.5)], [0.0, 3.0]),
)
def test_steps_in_a_schedules_own_time(row, rule, churn):
    """The columns VP and VE as they were sampled, and a mixture: the VP's time on an EDM network."""
    (order, alpha), kind = rule, {"vp-unscaled": "vp", "vp-on-edm": "edm"}.get(row, row)
    process = Process(**PROCESSES[kind])
    schedule, name = ({"name": "ve", "sigma_max": 100.0}, "edm_ve") if row == "ve" else ({"name": "vp_sde"}, "edm_vp")
    times = build("grid", {"name": name, "num_steps": 12})(process)
    levels = levels_of(process, times)[:-1]
    bounds = dict(s_min=0.05, s_max=20.0, s_noise=1.003)
    solver = solvers.in_time(schedule, scaled=row != "vp-unscaled", order=order, alpha=alpha, s_churn=churn, **bounds)
    y, noise = noises(12)
    found = run(solver, process, times, levels[0] * y, {"churn": noise} if churn else {})
    if row == "ve":
        inverse, parts = np.square, (np.sqrt, np.square, lambda t: 0.5 / np.sqrt(t), ONE, ZERO)
    else:
        scales = (ONE, ZERO) if row == "vp-unscaled" else (VP_S, VP_S_SLOPE)
        inverse, parts = VP_INVERSE, (VP_SIGMA, VP_INVERSE, VP_SLOPE, *scales)
    wanted = table_ode(levels[0] * y, np.append(inverse(levels), 0), *parts, order, alpha, noise, churn, 0.05, 20.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


def test_churn_goes_no_higher_than_the_schedule_whose_time_it_is():
    """The grid starts at its last level, and the process has higher ones: nothing is added there."""
    process = Process("edm", "edm")
    times = build("grid", {"name": "edm_ve", "num_steps": 4, "sigma_max": 50.0})(process)
    schedule, (y, noise) = {"name": "ve", "sigma_max": 50.0}, noises(4)
    found, low = (
        run(solvers.in_time(schedule, s_churn=1.0, s_max=s_max), process, times, 50 * y, {"churn": noise})
        for s_max in (None, 49.0)
    )
    np.testing.assert_allclose(found, low, rtol=1e-6)


def test_in_the_time_of_the_straight_line_it_is_the_flows_heun():
    """A process's own time is the default: on the straight line the slope is eps - x0."""
    process, t, s = Process("straight_line", "velocity"), 0.8, 0.5
    noisy = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    mine = denoiser(process)
    first = mine(noisy, t)
    predicted = noisy + (s - t) * (first.eps - first.x0)
    second = mine(predicted, s)
    wanted = noisy + (s - t) / 2 * (first.eps - first.x0 + second.eps - second.x0)
    found, _ = solvers.in_time(order=2).step(mine, noisy, (), jnp.float32(t), jnp.float32(s), no_noise)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("training", "sampler"), covering(edm_design.COLUMNS, edm_design.COLUMNS[::-1]))
def test_every_column_samples_networks_of_every_column(training, sampler):
    """4 x 4 rows, by name: all end on the two modes."""
    process = Process(**PROCESSES[training])
    # Euler's steps in the variance, geometric in it, need many.
    sampling = Sampling.from_config(sampling_design.column(sampler), steps=512 if sampler == "ve" else 64)
    run = jax.jit(
        lambda key: sample(denoiser(process), build("solver", sampling.solver), sampling.build_grid(), key, (256, 2)),
        compiler_options=QUICK,
    )
    x = np.asarray(run(jax.random.key(0)))
    few = sampler == "ve" and training == "iddpm"  # the chain has no more levels to give
    assert abs(np.abs(x).mean() - MODE) < (0.1 if few else 0.03), np.abs(x).mean()
    assert 0.08 < np.std(np.abs(x)) < 0.18, np.std(np.abs(x))  # the square root of 0.02 is 0.14
    assert abs((x > 0).mean() - 0.5) < 0.1


def test_a_schedule_must_reach_the_grids_first_level():
    """The VE SDE ends at 100, the VP SDE at 152; a grid that starts at 50 is within both."""
    process, solver = Process(**PROCESSES["vp"]), {"name": "in_time", "schedule": "ve"}
    with pytest.raises(ConfigError, match="'ve' ends at the level 100, below 152"):
        Sampling(solver=solver, grid="uniform", steps=20).check(process)
    Sampling(solver=solver, grid={"name": "edm_ve", "sigma_max": 50.0}, steps=20).check(process)
    solvers.in_time("straight_line").check(process, np.array([1.0, 0.0]))  # to zero SNR
    for sampler in edm_design.COLUMNS:
        for row in PROCESSES.values():
            Sampling.from_config(sampling_design.column(sampler), steps=20).check(Process(**row))


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: sampling_design.column("ddim"), "column: unknown 'ddim'.*known: vp, ve, iddpm, edm"),
        (lambda: sampling_design.edm_ve(0)(Process("ve", "edm_ve")), "num_steps must be a whole number at least 1"),
        (lambda: sampling_design.edm_ve(4, 2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: sampling_design.edm_vp(4)(Process("edm", "edm")), "starts at the level 152.*above 80.*set sigma_max"),
        (lambda: sampling_design.edm_iddpm(4, first=1000), r"first must lie in \[0, 1000\)"),
    ],
)
def test_misfits_are_named(build_it, message):
    with pytest.raises(ConfigError, match=message):
        build_it()
