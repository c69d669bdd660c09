"""Deterministic solvers against the exact flow of Gaussian and mixture data, and their orders of convergence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, schedules
from diffusion_jax.sampling import grids, invert, sample, solvers
from oracles import GAUSSIAN, LINE

SCHEDULES = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "quadratic": schedules.quadratic(),
    "cosine": schedules.cosine(),
    "cosine_continuous": schedules.cosine_continuous(),
    "cosine_shifted": schedules.cosine_continuous(shift=-1.5),
    "edm": schedules.edm(),
    "vp_sde": schedules.vp_sde(),
    "straight_line": schedules.straight_line(),
    "straight_line_shifted": schedules.straight_line(3.0),
}
PREDICTIONS = ("eps", "x0", "v", "score", "velocity", "edm")
SOLVERS = {"euler": solvers.euler, "heun": solvers.heun, "dpmpp_2m": solvers.dpmpp_2m}
TOLERANCE = {"euler": 0.04, "heun": 4e-3, "dpmpp_2m": 4e-3}


def processes(schedule):
    """Every parameterisation that the schedule admits."""
    for prediction in PREDICTIONS:
        try:
            yield Process(schedule, prediction=prediction)
        except ConfigError:
            assert prediction in ("eps", "score", "edm") and schedule.family == "linear"  # zero SNR at t = 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_parameterisation_and_solver_reaches_the_exact_result(name):
    """Gaussian data in two dimensions; all parameterisations and solvers of a schedule in one program."""
    found = list(processes(SCHEDULES[name]))
    times = grids.karras(80, sigma_min=0.005, sigma_max=40)(found[0])
    start = GAUSSIAN.marginal(found[0], times[0], 32)
    expected = GAUSSIAN.gaussian_transported(found[0], times[0], start)

    @jax.jit
    def run(x):
        return {
            (process.prediction.name, solver): sample(
                GAUSSIAN.denoiser(process), make(), times, jax.random.key(0), x.shape, initial=x
            )
            for process in found
            for solver, make in SOLVERS.items()
        }

    for (prediction, solver), result in run(jnp.asarray(start, jnp.float32)).items():
        error = np.abs(np.asarray(result) - expected).max()
        assert error < TOLERANCE[solver], (prediction, solver, error)


@pytest.mark.parametrize("name", ["cosine", "edm", "straight_line"])
def test_mixture_samples_land_on_the_quantiles(name):
    """In one dimension the flow preserves quantiles, whatever the path."""
    process = Process(SCHEDULES[name], prediction="v")
    times = grids.karras(100, sigma_min=0.005, sigma_max=40)(process)
    start = LINE.marginal(process, times[0], 64)
    expected = LINE.transported(process, times[0], start)
    run = jax.jit(
        lambda x: [
            sample(LINE.denoiser(process), make(), times, jax.random.key(0), x.shape, initial=x)
            for make in (solvers.heun, solvers.dpmpp_2m)
        ]
    )
    for result in run(jnp.asarray(start, jnp.float32)):
        assert np.quantile(np.abs(np.asarray(result) - expected), 0.95) < 0.02


def _errors(make, process, counts, end):
    """Largest errors at time `end` with uniform steps in the solver's own smooth coordinate, float64."""
    errors = []
    for count in counts:
        log_snr = np.linspace(process.schedule.log_snr(0.9), process.schedule.log_snr(end), count + 1)
        times = process.schedule.inverse(log_snr)
        with jax.enable_x64(True):
            start = GAUSSIAN.marginal(process, times[0], 8)
            expected = GAUSSIAN.gaussian_transported(process, times[0], start, times[-1])
            result = jax.jit(
                lambda x, times=times: sample(
                    GAUSSIAN.denoiser(process), make(), times, jax.random.key(0), x.shape, initial=x
                )
            )(jnp.asarray(start))
            errors.append(np.abs(np.asarray(result) - expected).max())
    return np.array(errors)


@pytest.mark.parametrize("schedule", ["vp_sde", "edm", "straight_line"])
@pytest.mark.parametrize(
    ("make", "order", "within"),
    [
        pytest.param(solvers.euler, 1, 0.2, id="euler"),
        pytest.param(solvers.ddim, 1, 0.2, id="ddim"),
        pytest.param(solvers.heun, 2, 0.3, id="heun"),
        pytest.param(solvers.dpmpp_2m, 2, 0.3, id="dpmpp_2m-midpoint"),
        pytest.param(lambda: solvers.dpmpp_2m("taylor"), 2, 0.3, id="dpmpp_2m-taylor"),
    ],
)
def test_order_of_convergence(schedule, make, order, within):
    counts = (64, 128, 256)
    errors = _errors(make, Process(SCHEDULES[schedule], prediction="v"), counts, end=0.1 if schedule != "edm" else 0.5)
    measured = np.log2(errors[:-1] / errors[1:])
    assert abs(measured[-1] - order) < within, (errors, measured)


def test_euler_on_the_straight_line_is_the_flow_euler():
    """x + (s - t) * velocity: the same step, written without sigma / alpha."""
    process = Process(schedules.straight_line(), prediction="velocity")
    denoiser, x = LINE.denoiser(process), jnp.asarray(LINE.marginal(process, 0.8, 16), jnp.float32)
    t, s = jnp.float32(0.8), jnp.float32(0.55)
    stepped, _ = solvers.euler().step(denoiser, x, (), t, s, None)
    denoised = denoiser(x, t)
    np.testing.assert_allclose(stepped, x + (s - t) * (denoised.eps - denoised.x0), atol=1e-6)


def test_zero_terminal_snr_starts_from_pure_noise():
    """On the straight line alpha(1) = 0: every solver starts there without dividing by it."""
    process = Process(schedules.straight_line(), prediction="velocity")

    @jax.jit
    def run(x):
        draw = lambda make: sample(LINE.denoiser(process), make(), grids.uniform(200), jax.random.key(0), x.shape, initial=x)  # noqa: E731
        return [draw(make) for make in (solvers.euler, solvers.heun, solvers.dpmpp_2m)]

    start = np.random.default_rng(0).standard_normal((64, 1))
    expected = LINE.transported(process, 1.0, start)
    for result in run(jnp.asarray(start, jnp.float32)):
        assert np.isfinite(result).all()
        assert np.quantile(np.abs(np.asarray(result) - expected), 0.95) < 0.05


def test_inversion_returns_to_the_data_and_improves_with_steps():
    process = Process(schedules.linear())
    x0 = jnp.asarray(GAUSSIAN.marginal(process, 0.0, 16), jnp.float32)
    errors = []
    for count in (20, 80, 320):
        grid = grids.uniform(count)

        @jax.jit
        def round_trip(x0, grid=grid):
            denoiser = GAUSSIAN.denoiser(process)
            x1 = invert(denoiser, grid, x0)
            return sample(denoiser, solvers.ddim(), grid, jax.random.key(0), x0.shape, initial=x1)

        errors.append(float(jnp.abs(round_trip(x0) - x0).mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.01, errors
