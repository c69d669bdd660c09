"""Deterministic solvers: orders of convergence, identities between them, zero terminal SNR, and inversion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.sampling import grids, invert, sample, solvers
from diffusion_jax.sampling.solvers.multistep import ADAMS_BASHFORTH
from tests.oracles import BIMODAL, GAUSSIAN, LINE, QUICK, covering, no_noise


def primed(solver, states):
    """The solver with its first states given, [K, B, D]: the order of a multistep method without that of its start."""

    def step(denoiser, x, state, t, s, noise):
        inner, number = state
        x, inner = solver.step(denoiser, x, inner, t, s, noise)
        given = jnp.asarray(states)[jnp.minimum(number, len(states) - 1)]
        return jnp.where(number < len(states), given, x), (inner, number + 1)

    return solver._replace(init=lambda x, count: (solver.init(x, count), 0), step=step)


def _errors(make, process, counts, exact_steps=0):
    """Largest errors with even steps in log-SNR, in float64; each count of steps halves the last one's."""
    highest, lowest = float(process.schedule.log_snr(0.1)), float(process.schedule.log_snr(0.9))
    errors = []
    for count in counts:
        times = process.schedule.inverse(np.linspace(lowest, highest, count + 1))
        times = times.astype(np.float32).astype(np.float64)  # a denoiser is told the time in float32
        with jax.enable_x64(True):
            start = BIMODAL.marginal(process, times[0], 8)
            expected = BIMODAL.transported(process, times[0], start, times[-1])
            solver = make()
            if exact_steps:
                first = [BIMODAL.transported(process, times[0], start, time) for time in times[1 : exact_steps + 1]]
                solver = primed(solver, np.stack(first))
            run = jax.jit(
                lambda x, times=times, solver=solver: sample(
                    BIMODAL.denoiser(process), solver, times, jax.random.key(0), x.shape, initial=x
                ),
                compiler_options=QUICK,
            )
            errors.append(np.abs(np.asarray(run(jnp.asarray(start))) - expected).max())
    return np.array(errors)


FAMILIES = ("vp_sde", "edm", "straight_line")
ORDERS = {
    "ddim": (solvers.ddim, 1, 0.2),
    "heun": (solvers.heun, 2, 0.3),
    "dpmpp_2m-midpoint": (solvers.dpmpp_2m, 2, 0.3),
    "dpmpp_2m-taylor": (lambda: solvers.dpmpp_2m("taylor"), 2, 0.3),
    "dpmpp_2s": (solvers.dpmpp_2s, 2, 0.3),
    "dpmpp_3m": (solvers.dpmpp_3m, 3, 0.4),
    "unip-2": (lambda: solvers.unipc(2, corrector=False), 2, 0.3),
    "unipc-2": (solvers.unipc, 3, 0.5),  # the corrector adds one (theorem 3.1)
    "heun-sigma": (lambda: solvers.heun(space="sigma"), 2, 0.3),
    "dpmpp_3m-library": (lambda: solvers.dpmpp_3m("library"), 2, 0.3),
    "unipc-3": (lambda: solvers.unipc(3), 3.75, 0.4),
    "pndm": (lambda: solvers.pndm("linear"), 2, 0.3),
    "pndm-runge-kutta": (lambda: solvers.pndm("runge_kutta"), 2, 0.3),
    "kdpm2": (solvers.kdpm2, 2, 0.3),
}


@pytest.mark.parametrize(("name", "schedule"), covering(ORDERS, FAMILIES))
def test_order_of_convergence(name, schedule):
    make, order, within = ORDERS[name]
    errors = _errors(make, Process(schedule, prediction="v"), (96, 192))
    measured = float(np.log2(errors[0] / errors[1]))
    assert abs(measured - order) < within, (errors, measured)


CONTINUED = {
    "deis-t-3": (lambda: solvers.deis(3), 3),
    "deis-log_rho-2": (lambda: solvers.deis(2, "log_rho"), 2),
    "deis-log_rho-3": (lambda: solvers.deis(3, "log_rho"), 3),
    "lms-3": (lambda: solvers.lms(3), 3),
    "lms-4": (lambda: solvers.lms(4), 4),
}


@pytest.mark.parametrize(("name", "schedule"), covering(CONTINUED, FAMILIES))
def test_order_of_multistep_methods_with_exact_first_states(name, schedule):
    make, order = CONTINUED[name]
    errors = _errors(make, Process(schedule, prediction="v"), (96, 192), order - 1)
    measured = float(np.log2(errors[0] / errors[1]))
    assert abs(measured - order) < 0.5, (errors, measured)


@pytest.mark.parametrize("weights", ADAMS_BASHFORTH, ids=len)
def test_pndm_weighs_earlier_noises_as_adams_and_bashforth(weights):
    """The integral over the next step of the polynomial through the latest values, at 0, -1, ...: exact up to its degree."""
    for degree in range(len(weights)):
        values = (-np.arange(len(weights), dtype=float)) ** degree
        assert np.dot(weights, values) == pytest.approx(1 / (degree + 1))


@pytest.mark.parametrize("schedule", ["vp_sde", "edm", "straight_line"])
def test_euler_is_a_step_of_the_flow_and_ddim(schedule):
    """y + (level_s - level_t) eps with y = x / alpha and level = sigma / alpha, in float64 from the schedule itself."""
    process = Process(schedule, prediction="x0")
    x = LINE.marginal(process, 0.6, 16)
    (alpha, sigma), (alpha_s, sigma_s) = (process.schedule.alpha_sigma(np.float64(t)) for t in (0.6, 0.45))
    t, s, x = jnp.float32(0.6), jnp.float32(0.45), jnp.asarray(x, jnp.float32)
    denoiser = LINE.denoiser(process)
    stepped, _ = solvers.euler().step(denoiser, x, (), t, s, no_noise)
    expected = alpha_s * (np.asarray(x) / alpha + (sigma_s / alpha_s - sigma / alpha) * np.asarray(denoiser(x, t).eps))
    np.testing.assert_allclose(stepped, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stepped, solvers.ddim().step(denoiser, x, (), t, s, no_noise)[0])


def test_heun_on_the_straight_line_is_the_flow_heun():
    """The mean of the velocities at both ends, in x and t."""
    process = Process("straight_line", prediction="velocity")
    denoiser, x = LINE.denoiser(process), jnp.asarray(LINE.marginal(process, 1.0, 16), jnp.float32)
    velocity = lambda x, t: denoiser(x, t).eps - denoiser(x, t).x0  # noqa: E731
    for t, s in ((1.0, 0.7), (0.7, 0.4)):  # zero SNR is a time like others
        t, s = jnp.float32(t), jnp.float32(s)
        slope = velocity(x, t)
        expected = x + 0.5 * (s - t) * (slope + velocity(x + (s - t) * slope, s))
        np.testing.assert_allclose(solvers.heun().step(denoiser, x, jnp.zeros(()), t, s, no_noise)[0], expected, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "cosine_continuous"])
def test_heun_bears_a_start_at_almost_no_signal(schedule):
    """One uniform step from t = 1 takes sigma / alpha from 20,000 to 25 or so; the error stays that of a good step."""
    process = Process(schedule, prediction="v")
    start, grid = BIMODAL.marginal(process, 1.0, 32), grids.uniform(30)
    run = jax.jit(
        lambda x: sample(BIMODAL.denoiser(process), solvers.heun(), grid, jax.random.key(0), x.shape, initial=x),
        compiler_options=QUICK,
    )
    expected = BIMODAL.transported(process, 1.0, start)
    np.testing.assert_allclose(run(jnp.asarray(start, jnp.float32)), expected, atol=0.03)


def test_first_step_of_dpmpp_2m_is_ddim():
    process = Process("cosine", prediction="v")
    denoiser, x = LINE.denoiser(process), jnp.asarray(LINE.marginal(process, 0.8, 16), jnp.float32)
    for make in (solvers.dpmpp_2m, lambda: solvers.dpmpp_2m("taylor")):
        for t, s in ((0.8, 0.5), (0.05, 0.0)):
            first = make().step(denoiser, x, make().init(x, 10), jnp.float32(t), jnp.float32(s), no_noise)[0]
            ddim = solvers.ddim().step(denoiser, x, (), jnp.float32(t), jnp.float32(s), no_noise)[0]
            np.testing.assert_allclose(first, ddim, atol=2e-5)


def test_inversion_returns_to_the_data_and_improves_with_steps():
    process = Process("linear")
    x0 = jnp.asarray(BIMODAL.marginal(process, 0.0, 64), jnp.float32)
    denoiser = BIMODAL.denoiser(process)
    errors, lengths = [], []
    for count in (25, 100):
        grid = grids.uniform(count)

        def round_trip(x0, grid=grid):
            x1 = invert(denoiser, grid, x0)
            return x1, sample(denoiser, solvers.ddim(), grid, jax.random.key(0), x0.shape, initial=x1)

        x1, decoded = jax.jit(round_trip, compiler_options=QUICK)(x0)
        errors.append(float(jnp.abs(decoded - x0).mean()))
        lengths.append(float(jnp.square(x1).mean()))
    assert errors[0] > 2 * errors[1] and errors[1] < 0.02, errors
    assert abs(lengths[1] - 1) < 0.35, lengths  # data were encoded as noise: unit variance


def test_inversion_of_one_step_encodes_at_the_end():
    process = Process("linear")
    denoiser, x0 = GAUSSIAN.denoiser(process), jnp.asarray([[0.4, -0.2]])
    alpha, sigma = process.alpha_sigma(1.0)
    expected = alpha * x0 + sigma * denoiser(x0, jnp.float32(1.0)).eps
    np.testing.assert_allclose(invert(denoiser, grids.uniform(1), x0), expected, rtol=1e-5)


@pytest.mark.parametrize("solver", [solvers.euler, solvers.heun, solvers.in_time])
def test_bounds_of_churn_in_the_wrong_order(solver):
    with pytest.raises(ConfigError, match=f"solver '{solver.__name__}': needs s_min <= s_max, got 2.0 and 1.0"):
        solver(s_min=2.0, s_max=1.0)
