"""Every schedule x parameterisation x solver reaches the exact result on Gaussian and on mixture data."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, schedules
from diffusion_jax.registry import known
from diffusion_jax.sampling import grids, sample, solvers
from tests.oracles import BIMODAL, CORRELATED, QUICK, Mixture, network, side_by_side

SCHEDULES = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "quadratic": schedules.quadratic(),
    "cosine": schedules.cosine(),
    "cosine_continuous": schedules.cosine_continuous(),
    "betas": schedules.from_betas(np.append(np.linspace(1e-4, 0.1, 199), 1.0)),  # ends in zero SNR
    "edm": schedules.edm(),
    "vp_sde": schedules.vp_sde(),
    "straight_line": schedules.straight_line(shift=2.0),
    "shifted": schedules.shifted(schedules.cosine(), size=128),
    "zero_terminal_snr": schedules.zero_terminal_snr("scaled_linear"),
}
PREDICTIONS = ("x0", "eps", "v", "score", "velocity", "edm")  # x0 first: it is defined on every schedule
DATA = {"gaussian": CORRELATED, "mixture": BIMODAL}

# Solver, steps, and tolerance of the endpoint, where the data have a standard deviation of about 0.6.
DETERMINISTIC = {
    "ddim": (solvers.ddim(), 400, 1.2e-2),
    "heun": (solvers.heun(), 100, 3e-3),
    "dpmpp_2m": (solvers.dpmpp_2m(), 100, 3e-3),
    "dpmpp_2s": (solvers.dpmpp_2s(), 100, 3e-3),
    "dpmpp_3m": (solvers.dpmpp_3m(), 100, 3e-3),
    "unipc": (solvers.unipc(), 60, 3e-3),
    "pndm": (solvers.pndm(), 200, 5e-3),
    "kdpm2": (solvers.kdpm2(), 100, 3e-3),
    "deis": (solvers.deis(), 100, 3e-3),
    "lms": (solvers.lms(), 100, 3e-3),
}
STOCHASTIC = {
    "ddpm": (solvers.ddpm(), 200),
    "heun_churn": (solvers.heun(s_churn=20.0), 100),
    "dpmpp_2m_sde": (solvers.dpmpp_2m_sde(), 100),
    "dpmpp_sde": (solvers.dpmpp_sde(), 60),
    "kdpm2_ancestral": (solvers.kdpm2_ancestral(), 60),
}
# Every run meets each schedule, with ddim, and each solver, with two schedules of the four kinds in turn: a chain, exploding
# variance, a straight line, and zero SNR at the end. All other pairs are slow.
KINDS = ("linear", "edm", "straight_line", "zero_terminal_snr")


PARITY = ("kdpm2", "kdpm2_ancestral", "deis", "lms")  # with one kind, as they are held to public libraries' trajectories


def pairs(table: dict) -> list:
    """(schedule, solver) for all of both."""
    quick = {(schedule, "ddim") for schedule in SCHEDULES}
    for number, solver in enumerate(table):
        quick |= {(KINDS[number % 4], solver)}
        quick |= set() if solver in PARITY else {(KINDS[(number + 1 + number // 4) % 4], solver)}
    every = itertools.product(SCHEDULES, table)
    return [pytest.param(*names, marks=[] if names in quick else [pytest.mark.slow]) for names in every]


def defined(schedule: str) -> list[str]:
    """The predictions that mean something on a schedule: at zero terminal SNR those of noise do not."""
    ends_in_noise = not np.isfinite(SCHEDULES[schedule].log_snr(1.0))
    return [name for name in PREDICTIONS if not (ends_in_noise and name in ("eps", "score", "edm"))]


def processes(schedule: str) -> list[Process]:
    return [Process(SCHEDULES[schedule], name, noise_input="log_snr") for name in defined(schedule)]


@functools.cache
def grid_of(schedule: str, num_steps: int) -> np.ndarray:
    """From t = 1, then Karras' levels down to 0.004: one grid for all schedules."""
    times = grids.karras(num_steps, sigma_min=0.004)(Process(SCHEDULES[schedule], "x0"))
    return times if times[0] > 0.999 else np.append(1.0, times)


def test_the_tables_name_all_schedules_predictions_and_solvers() -> None:
    elsewhere = {"constant", "warmup", "jsd", "ve", "iddpm_levels", "subvp_sde"}  # see test_schedules and test_edm_design
    assert set(known("schedule")) - elsewhere == set(SCHEDULES)
    elsewhere = {"mu", "edm_vp", "edm_ve", "consistency"}  # see test_objectives, test_edm_design and those of consistency
    assert set(known("prediction")) - elsewhere == set(PREDICTIONS)
    # The first two are the step of ddim: see test_deterministic and test_stochastic; the last, test_edm_sampler.
    others = {"euler", "euler_ancestral", "in_time", "reverse_diffusion", "predictor_corrector"}  # the last two: test_score_sde
    learnt = {
        "lcm",
        "tcd",
        "consistency",
        "categorical",
    }  # exact with networks that jump: test_serving; test_categorical
    assert set(known("solver")) - others - learnt == set(DETERMINISTIC) | set(STOCHASTIC) - {"heun_churn"}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_predictions_of_noise_at_zero_snr_are_errors(schedule: str) -> None:
    for prediction in PREDICTIONS:
        if prediction in defined(schedule):
            assert Process(SCHEDULES[schedule], prediction).prediction.name == prediction
        else:
            with pytest.raises(ConfigError, match="zero SNR"):
                Process(SCHEDULES[schedule], prediction)


@pytest.mark.parametrize("schedule", ["vp_sde", "edm", "straight_line"])  # one of each family
def test_every_parameterisation_binds_a_network_exactly(schedule: str) -> None:
    """Through `bind`: scaled input, noise level, target and decoding, at all noise levels."""
    times = jnp.asarray(np.linspace(1.0, 0.02, 40), jnp.float32)
    alpha, sigma = SCHEDULES[schedule].alpha_sigma(times)
    x_t = jax.random.normal(jax.random.key(0), (40, 2)) * jnp.hypot(0.6 * alpha, sigma)[:, None]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(data: Mixture) -> tuple:
        bound = [process.bind(network(process), data)(x_t, times)[:2] for process in processes(schedule)]
        return data.posterior_means(x_t, alpha[:, None], sigma[:, None]), bound

    (x0, eps), bound = run(BIMODAL)
    for name, (found_x0, found_eps) in zip(defined(schedule), bound, strict=True):
        # x_t is known to 1e-6 of sigma, so x0 is to as much of sigma / alpha, and eps to as much of alpha / sigma.
        x0_error, eps_error = jnp.abs(found_x0 - x0).max(1), jnp.abs(found_eps - eps).max(1)
        assert (x0_error < 1e-5 * (1 + sigma / jnp.maximum(alpha, 1e-9))).all(), name
        assert (eps_error < 1e-5 * (1 + alpha / sigma)).all(), name


@pytest.mark.parametrize(("schedule", "solver"), pairs(DETERMINISTIC))
def test_deterministic_solvers_follow_the_flow(schedule: str, solver: str) -> None:
    rule, num_steps, tolerance = DETERMINISTIC[solver]
    grid, names, rows = grid_of(schedule, num_steps), defined(schedule), 9
    process = Process(SCHEDULES[schedule], "x0")
    if solver == "pndm":  # made for even steps of little curvature: it starts where there is signal
        if np.isinf(process.schedule.log_snr(grid[0])):
            with pytest.raises(ConfigError, match="zero SNR"):
                rule.check(process, grid)
        grid = grid[process.schedule.log_snr(grid) > -2 * np.log(81)]
    points = np.stack(np.meshgrid([-1.6, 0.1, 1.3], [-1.2, 0.3, 1.8]), -1).reshape(rows, 2)
    points *= process.schedule.alpha_sigma(grid[0])[1]
    initial = jnp.asarray(np.tile(points, (len(names), 1)), jnp.float32)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(data: Mixture) -> jax.Array:
        denoiser = side_by_side(processes(schedule), [rows] * len(names), data)
        return sample(denoiser, rule, grid, jax.random.key(0), initial.shape, initial=initial)

    for label, data in DATA.items():
        exact = data.transported(process, grid[0], points)
        for name, reached in zip(names, np.split(np.asarray(run(data)), len(names)), strict=True):
            np.testing.assert_allclose(reached, exact, atol=tolerance, err_msg=f"{label}, {name}")


@pytest.mark.parametrize(("schedule", "solver"), pairs(STOCHASTIC))
def test_stochastic_solvers_draw_from_the_data(schedule: str, solver: str) -> None:
    rule, num_steps = STOCHASTIC[solver]
    grid, names = grid_of(schedule, num_steps), defined(schedule)
    sizes = [1000] + [8] * (len(names) - 1)
    indices = np.concatenate([np.arange(size) for size in sizes])  # rows of one index share their noise

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(data: Mixture) -> jax.Array:
        denoiser = side_by_side(processes(schedule), sizes, data)
        return sample(denoiser, rule, grid, jax.random.key(1), (len(indices), 2), indices=indices)

    for label, data in DATA.items():
        first, *others = np.split(np.asarray(run(data)), np.cumsum(sizes)[:-1])
        for name, reached in zip(names[1:], others, strict=True):
            np.testing.assert_allclose(reached, first[:8], atol=5e-3, err_msg=f"{label}, {name}")
        along = data.along_axes(first)
        for axis in (0, 1):
            # Kolmogorov-Smirnov: chance exceeds 0.07 once in 10,000 draws of 1,000.
            assert stats.kstest(along[:, axis], data.cdf, args=(axis,)).statistic < 0.07, (label, axis)
        assert abs(np.corrcoef(along.T)[0, 1]) < 4 / np.sqrt(1000), label
