"""What solvers ask of a process and of a run: checks before work, evaluations; and the jumps of consistency models."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Denoiser, Process
from diffusion_jax.registry import build, known
from diffusion_jax.sampling import grids, sample, solvers
from diffusion_jax.sampling.solvers.base import SERVE_ZERO_SNR
from diffusion_jax.systems.sampling import Sampling
from tests.oracles import GAUSSIAN, LINE, QUICK, no_noise

CHAIN = Process("linear", prediction="v")
NO_SIGNAL = Process("straight_line", prediction="velocity")
JUMPS = {"lcm", "consistency"}  # of networks that learnt to jump, on the processes they were made for


def run(solver, process, times):
    times = np.asarray(times(process) if callable(times) else times)
    return np.asarray(sample(LINE.denoiser(process), solver, times, jax.random.key(0), (4, 1)))


# Checks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in known("solver") if name not in JUMPS | {"categorical"}])
def test_zero_snr_is_served_or_refused(name):
    """A solver that is named as serving it does; one that is not named either does or says so, and lists those that do."""
    named = name in re.findall(r"\w+", SERVE_ZERO_SNR)
    try:
        found = run(build("solver", name), NO_SIGNAL, grids.uniform(6))
    except ConfigError as error:
        assert not named and "start from zero SNR: ddpm" in str(error)
    else:
        assert np.isfinite(found).all() and found.std() > 0.1


def test_all_that_serve_zero_snr_are_solvers():
    words = set(re.findall(r"\w+", SERVE_ZERO_SNR)) - {"space", "x", "and", "of", "few", "step", "networks"}
    assert words <= set(known("solver"))


@pytest.mark.parametrize("solver", ["pndm", {"name": "heun", "space": "sigma"}])
def test_only_a_grid_that_starts_at_zero_snr_is_refused(solver):
    settings = Sampling(solver=solver, grid="trailing", steps=6)
    with pytest.raises(ConfigError, match="divides by alpha, which is 0 at t = 1 of the schedule 'zero-terminal linear'"):
        settings.check(Process("zero_terminal_snr", prediction="v"))
    settings.check(CHAIN)
    Sampling(solver=solver, grid="leading", steps=6).check(Process("zero_terminal_snr", prediction="v"))


def test_refusals_come_before_work():
    def function(x, t):
        raise AssertionError("the network was evaluated")

    with pytest.raises(ConfigError, match="divides by alpha"):
        sample(Denoiser(function, NO_SIGNAL), solvers.pndm(), grids.uniform(6), jax.random.key(0), (2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(solver="pndm", steps=1).check(CHAIN), "needs 2 steps at least, got 1"),
        (lambda: Sampling(solver={"name": "pndm", "warm_up": "runge_kutta"}, steps=3).check(CHAIN), "needs 4 steps at least"),
        (lambda: Sampling(solver="lcm", steps=4).check(Process("edm", "edm")), "variance-preserving.*use 'consistency'"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (
            {"name": "pndm", "warm_up": "linaer"},
            "'pndm': warm_up must be one of 'linear', 'runge_kutta', got 'linaer'; did you",
        ),
        ({"name": "lcm", "sigma_data": 0.0}, "'lcm': sigma_data must be a number above 0"),
        ({"name": "heun", "space": "y"}, "'heun': space must be one of 'x', 'sigma'"),
        ({"name": "heun", "s_churn": -1.0}, "'heun': s_churn must be a number at least 0"),
        ({"name": "in_time", "order": 3}, r"'in_time': order must be a whole number in \[1, 2\]"),
        ({"name": "in_time", "alpha": 0.0}, r"alpha must be a number in \(0, 1\]"),
        ({"name": "ddpm", "variance": "fixed_smal"}, "did you mean 'fixed_small'"),
        ({"name": "ddpm", "variance": 1.5}, r"a number in \[0, 1\], or None, got 1.5"),
        ({"name": "ddim", "eta": "high"}, r"'ddim': eta must be a number in \[0, 1\], got 'high'"),
        ({"name": "euler_ancestral", "eta": float("nan")}, r"eta must be a number in \[0, 1\], got nan"),
        ({"name": "dpmpp_2m", "variant": "midpiont"}, "did you mean 'midpoint'"),
        ({"name": "dpmpp_2m_sde", "eta": 1.5}, "eta must be"),
        ({"name": "dpmpp_sde", "eta": -0.1}, "eta must be"),
        ({"name": "dpmpp_3m", "form": "exakt"}, "did you mean 'exact'"),
        ({"name": "unipc", "order": 4}, r"a whole number in \[1, 3\], got 4"),
        ({"name": "unipc", "order": True}, r"a whole number in \[1, 3\], got True"),
        ({"name": "unipc", "b": "bh3"}, "did you mean 'bh"),
        ({"name": "unipc", "corrector": "no"}, "corrector must be True or False, got 'no'"),
        ({"name": "deis", "order": 2.5}, "order must be a whole number"),
        ({"name": "deis", "variable": "rho"}, "variable must be one of 't', 'log_rho'"),
        ({"name": "lms", "order": 5}, r"a whole number in \[1, 4\], got 5"),
        ({"name": "kdpm2_ancestral", "eta": 2}, "eta must be"),
        ({"name": "tcd", "gamma": 1.1}, "gamma must be"),
        ({"name": "consistency", "sigma_min": -1}, "at least 0"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_fields_are_held_to_their_annotations(solver, message):
    """Those of a configuration, and those of a call in Python."""
    fields = {key: value for key, value in solver.items() if key != "name"}
    for make in (lambda: build("solver", solver), lambda: getattr(solvers, solver["name"])(**fields)):
        with pytest.raises(ConfigError, match=message):
            make()


# Evaluations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (solvers.euler_ancestral(), 7),
        (solvers.dpmpp_2s(), 13),
        (solvers.dpmpp_sde(), 13),
        (solvers.dpmpp_2m_sde(), 7),
        (solvers.dpmpp_3m(), 8),
        (solvers.dpmpp_3m("library"), 7),
        (solvers.unipc(3), 7),
        (solvers.pndm("linear"), 8),
        (solvers.pndm("runge_kutta"), 16),
        (solvers.lcm(), 7),
        (solvers.kdpm2(), 13),
        (solvers.lms(), 7),
    ],
    ids=["euler_ancestral", "2s", "sde", "2m_sde", "3m", "3m-library", "unipc", "plms", "f-pndm", "lcm", "kdpm2", "lms"],
)
def test_network_evaluations(solver, expected):
    """Of 7 steps, counted at run time: what docs/sampling.md says."""
    calls = []

    def function(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return Denoised(0 * x, x)

    grid = grids.trailing(7)
    jax.block_until_ready(sample(Denoiser(function, CHAIN), solver, grid, jax.random.key(0), (1, 1)))
    jax.effects_barrier()
    assert len(calls) == expected


# PNDM -----------------------------------------------------------------------------------------------------------------


def test_linear_multistep_is_exact_on_cubics():
    """Where sigma / alpha is the time, the four weights integrate a cubic noise over even steps."""
    process = Process("edm", prediction="x0")
    cubic = np.polynomial.Polynomial([0.2, -0.5, 0.3, 0.7])
    levels = np.array([3.0, 2.5, 2.0, 1.5, 1.0])
    times = process.schedule.inverse(-2 * np.log(levels))

    def function(x, t):
        eps = jnp.polyval(jnp.asarray(cubic.coef[::-1]), process.alpha_sigma(t)[1])
        return Denoised(0 * x, jnp.broadcast_to(eps[:, None], x.shape))

    with jax.enable_x64(True):
        _, path = sample(
            Denoiser(function, process),
            solvers.pndm(),
            times,
            jax.random.key(0),
            (1, 1),
            initial=jnp.ones((1, 1)),
            trajectory=True,
        )
    moved = np.diff(np.asarray(path).ravel())
    exact = np.diff(cubic.integ()(levels))
    np.testing.assert_allclose(moved[3], exact[3], rtol=1e-6)
    assert (np.abs(moved[:3] - exact[:3]) > 1e-3).all()  # the steps of lower order before it


def test_runge_kutta_warm_up_is_exact_on_cubics():
    """Simpson's rule, as the noise here does not depend on x."""
    process = Process("edm", prediction="x0")
    cubic = np.polynomial.Polynomial([0.2, -0.5, 0.3, 0.7])

    def function(x, t):
        eps = jnp.polyval(jnp.asarray(cubic.coef[::-1], x.dtype), t)
        return Denoised(0 * x, jnp.broadcast_to(eps[:, None], x.shape))

    solver, x = solvers.pndm("runge_kutta"), jnp.ones((1, 1))
    t, s = jnp.float32(0.5), jnp.float32(0.4)
    found, _ = solver.step(Denoiser(function, process), x, solver.init(x, 8), t, s, no_noise)
    mean = (cubic.integ()(0.5) - cubic.integ()(0.4)) / 0.1  # over time, of the noise that moves x in sigma
    sigma_t, sigma_s = (80 * time**7 for time in (0.5, 0.4))
    np.testing.assert_allclose(found - x, (sigma_s - sigma_t) * mean, rtol=1e-5)


# Jumps ----------------------------------------------------------------------------------------------------------------


def jumping(process: Process) -> Denoiser:
    """The exact consistency function of Gaussian data: where the flow takes x_t."""
    mean, deviation = GAUSSIAN.means[0], np.sqrt(GAUSSIAN.variances[0])

    def function(x, t):
        alpha, sigma = (value[:, None] for value in process.alpha_sigma(t))
        x0 = mean + deviation * (x - alpha * mean) / jnp.sqrt(alpha**2 * deviation**2 + sigma**2)
        return Denoised(x0, (x - alpha * x0) / sigma)

    return Denoiser(function, process)


@pytest.mark.parametrize("steps", [1, 4])
def test_exact_jumps_draw_from_the_data(steps):
    draw = jax.jit(
        lambda key: sample(jumping(CHAIN), solvers.lcm(), grids.trailing(steps), key, (20_000, 2)), compiler_options=QUICK
    )
    found = np.asarray(draw(jax.random.key(0)))
    np.testing.assert_allclose(found.mean(0), GAUSSIAN.means[0], atol=5 * np.sqrt(GAUSSIAN.variances[0] / 20_000).max())
    np.testing.assert_allclose(found.var(0), GAUSSIAN.variances[0], rtol=5 * np.sqrt(2 / 20_000))


def test_the_boundary_is_the_identity():
    """At the chain's first time nothing is predicted, whatever the network says; far from it everything is."""
    solver, x = solvers.lcm(), jnp.full((2, 3), 0.7)
    denoiser = Denoiser(lambda x, t: Denoised(0 * x - 5, x), CHAIN)
    at_first, _ = solver.step(denoiser, x, (), jnp.float32(1e-3), jnp.float32(0.0), lambda name: x)
    np.testing.assert_allclose(at_first, x, atol=2e-3)
    later, _ = solver.step(denoiser, x, (), jnp.float32(0.5), jnp.float32(0.0), lambda name: x)
    np.testing.assert_allclose(later, -5.0, atol=1e-4)
    # By hand at the third index with u = 0.4, sigma_data = 0.3: c_skip = 0.09 / 0.25, c_out = 0.4 / 0.5.
    mixed, _ = solvers.lcm(0.2, 0.3).step(denoiser, x, (), jnp.float32(3e-3), jnp.float32(0.0), lambda name: x)
    np.testing.assert_allclose(mixed, 0.36 * 0.7 + 0.8 * -5, rtol=1e-4)
    # The index is of 1,000 whatever the chain: the third of 100 steps is the 20th, and so is the time 0.02.
    for process, t in ((Process({"name": "linear", "num_steps": 100}), 0.03), (Process("vp_sde"), 0.02)):
        denoiser = Denoiser(lambda x, t: Denoised(0 * x - 5, x), process)
        mixed, _ = solvers.lcm(0.02, 0.3).step(denoiser, x, (), jnp.float32(t), jnp.float32(0.0), lambda name: x)
        np.testing.assert_allclose(mixed, 0.36 * 0.7 + 0.8 * -5, rtol=1e-4)
