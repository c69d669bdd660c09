"""The sampling loop: noise by sample index, evaluations, trajectories, early ends, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import registry
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Corruption, Denoiser, Process, expand
from diffusion_jax.rng import named
from diffusion_jax.sampling import Solver, grids, guidance, invert, sample, solvers
from tests.oracles import GAUSSIAN, QUICK

PROCESS = Process("cosine_continuous", prediction="v")
EXACT = GAUSSIAN.denoiser(PROCESS)
GRID = grids.uniform(7)
GAUSSIAN_SOLVERS = (
    "ddpm ddim euler euler_ancestral heun in_time dpmpp_2m dpmpp_2m_sde dpmpp_2s dpmpp_sde dpmpp_3m unipc pndm lcm consistency "
    "deis lms kdpm2 kdpm2_ancestral tcd reverse_diffusion predictor_corrector"
).split()


def draw(solver, indices, key=0):
    indices = jnp.asarray(indices)
    run = jax.jit(
        lambda indices, key: sample(EXACT, solver, GRID, key, (len(indices), 2), indices=indices),
        compiler_options=QUICK,
    )
    return np.asarray(run(indices, jax.random.key(key)))


@pytest.mark.parametrize("solver", [solvers.ddpm(), solvers.heun(s_churn=3.0)], ids=["ddpm", "heun_churn"])
def test_a_sample_is_a_function_of_its_index(solver):
    """Any part of a batch, in any order: the same samples."""
    whole = draw(solver, range(16))
    for indices in ([3, 11, 0], list(range(8, 16))):
        np.testing.assert_allclose(draw(solver, indices), whole[indices], atol=2e-6)
    apart = np.abs(whole[:, None] - whole).max(-1) + np.eye(16)
    assert apart.min() > 1e-4  # no two samples share their noise
    assert np.abs(draw(solver, range(16), key=1) - whole).min(0).max() > 1e-4


def test_samples_do_not_depend_on_devices_or_jit():
    solver, key = solvers.ddpm(), jax.random.key(0)
    whole = draw(solver, range(16))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(jnp.arange(16), jax.NamedSharding(mesh, jax.P("data")))
    sharded = jax.jit(lambda indices: sample(EXACT, solver, GRID, key, (16, 2), indices=indices))(spread)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, whole, atol=2e-6)
    np.testing.assert_allclose(sample(EXACT, solver, GRID, key, (16, 2)), whole, atol=2e-6)


def evaluations(solver, wrap=lambda denoiser: denoiser, count=7):
    """How often a run of `count` steps evaluates the network, counted at run time."""
    calls = []

    def function(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return EXACT(x, t)

    denoiser = wrap(Denoiser(function, PROCESS))
    jax.block_until_ready(sample(denoiser, solver, grids.uniform(count), jax.random.key(0), (2, 2)))
    jax.effects_barrier()
    return len(calls)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m", "heun"])
def test_network_evaluations(name):
    """N, and 2N - 1 for Heun."""
    solver = getattr(solvers, name)()
    assert evaluations(solver) == (13 if name == "heun" else 7)
    assert solver.evaluations == (2 if name == "heun" else 1)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 3), (1, 3), (2.5, 6)])
def test_guidance_at_scale_one_costs_nothing(scale, expected):
    wrap = lambda denoiser: guidance.classifier_free(denoiser, denoiser, scale)  # noqa: E731
    assert evaluations(solvers.ddim(), wrap, count=3) == expected


def test_trajectory_holds_every_state():
    grid, key = grids.uniform(5), jax.random.key(0)
    x, path = sample(EXACT, solvers.ddpm(), grid, key, (4, 2), trajectory=True)
    assert path.shape == (6, 4, 2)
    np.testing.assert_array_equal(path[-1], x)
    np.testing.assert_allclose(path[0].std(), 1.0, atol=0.5)
    # A run that ends where a grid time is, ends in that state; and one can go on from there.
    times = grid(PROCESS)
    stopped = sample(EXACT, solvers.ddim(), grid, key, (4, 2), end=float(times[3]))
    _, still = sample(EXACT, solvers.ddim(), grid, key, (4, 2), trajectory=True)
    np.testing.assert_allclose(stopped, still[3], atol=1e-6)
    resumed = sample(EXACT, solvers.ddim(), times[3:], key, (4, 2), initial=stopped)
    np.testing.assert_allclose(resumed, still[-1], atol=1e-6)


def test_early_end_between_grid_times_has_the_marginal_of_that_time():
    run = jax.jit(lambda key: sample(EXACT, solvers.heun(), grids.uniform(20), key, (4000, 2), end=0.33))
    x = np.asarray(run(jax.random.key(0)))
    alpha, sigma = PROCESS.schedule.alpha_sigma(0.33)
    variance = alpha**2 * GAUSSIAN.variances[0] + sigma**2
    np.testing.assert_allclose(x.mean(0), alpha * GAUSSIAN.means[0], atol=5 * np.sqrt(variance.max() / len(x)))
    np.testing.assert_allclose(x.var(0), variance, rtol=0.12)


@pytest.mark.parametrize("schedule", ["vp_sde", "edm", "straight_line"])
@pytest.mark.parametrize("start", [1.0, 0.8])
def test_initial_noise_has_the_deviation_of_its_time(schedule, start):
    process = Process(schedule, prediction="x0")
    grid = np.array([start, 0.0])
    _, path = sample(GAUSSIAN.denoiser(process), solvers.ddim(), grid, jax.random.key(0), (4000, 2), trajectory=True)
    expected = 1.0 if schedule == "vp_sde" else process.schedule.alpha_sigma(start)[1]
    np.testing.assert_allclose(path[0].std(0), expected, rtol=0.06)


def _dtypes(jaxpr) -> set:
    """Of all floating arrays that a program computes."""
    inner = [part for equation in jaxpr.eqns for value in equation.params.values() for part in jax.tree.leaves(value)]
    found = {out.aval.dtype for equation in jaxpr.eqns for out in equation.outvars if hasattr(out.aval, "dtype")}
    nested = [getattr(part, "jaxpr", part) for part in inner if hasattr(part, "eqns") or hasattr(part, "jaxpr")]
    return {kind for kind in found if jnp.issubdtype(kind, jnp.floating)}.union(*map(_dtypes, nested))


TRACED = {name: [] if name in ("ddpm", "deis", "kdpm2_ancestral", "lcm") else [pytest.mark.slow] for name in GAUSSIAN_SOLVERS}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in TRACED.items()])
def test_a_run_is_of_the_dtype_of_its_noise(name):
    """Tables included: a run in float64 computes nothing in float32, nor the other way round."""
    fields = {"s_churn": 1.0} if name in ("heun", "euler", "in_time") else {}
    solver, process = registry.build("solver", {"name": name, **fields}), Process("linear", "v")
    denoiser = Denoiser(lambda x, t: process.decode(0.5 * x, x, t), process)
    run = lambda x: sample(denoiser, solver, grids.leading(4), jax.random.key(0), x.shape, initial=x)  # noqa: E731
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.float32):
            program = jax.make_jaxpr(run)(jnp.zeros((2, 2), dtype))
            assert program.out_avals[0].dtype == dtype
            assert _dtypes(program.jaxpr) == {jnp.dtype(dtype)}


def test_noise_may_be_given():
    """In place of what the key draws, and in the dtype of the run."""
    times, start = np.array([1.0, 0.6, 0.3, 0.0]), np.random.default_rng(0).normal(size=(4, 2))
    keys = [jax.random.fold_in(jax.random.key(3), index) for index in range(4)]
    drawn = np.array([[jax.random.normal(named(key, "step", number), (2,)) for key in keys] for number in range(3)])
    run = lambda **kwargs: sample(EXACT, solvers.ddpm(), times, jax.random.key(3), (4, 2), **kwargs)  # noqa: E731
    initial = jnp.asarray(start, jnp.float32)
    np.testing.assert_allclose(run(initial=initial, noise={"step": drawn}), run(initial=initial), atol=1e-6)
    assert np.abs(run(initial=initial, noise={"step": 0 * drawn}) - run(initial=initial)).max() > 0.1


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({}, "draws the noise 'step', which is not given \\(given: none\\)"),
        ({"step": np.zeros((2, 2, 2)), "churn": np.zeros((2, 2, 2))}, "draws no noise 'churn' \\(it draws 'step'\\)"),
        ({"step": np.zeros((3, 2, 2))}, r"the noise 'step' of 2 steps must be \[2, B, ...\], got \(3, 2, 2\)"),
        ({"step": np.zeros((2, 3, 2))}, r"'step' of a step must be of the shape \(2, 2\), got \(3, 2\)"),
    ],
)
def test_given_noise_must_be_what_the_solver_draws(noise, message):
    with pytest.raises(ConfigError, match=message):
        sample(EXACT, solvers.ddpm(), np.array([1.0, 0.5, 0.0]), jax.random.key(0), (2, 2), noise=noise)


@pytest.mark.parametrize(
    ("grid", "kwargs", "message"),
    [
        ([0.1, 0.5, 0.0], {}, "must descend"),
        ([1.0, 0.5, 0.5, 0.0], {}, "must descend"),
        ([1.0], {}, "two times"),
        ([1.5, 0.0], {}, r"within \[0, 1\]"),
        ([1.0, np.nan, 0.0], {}, "must descend"),
        ([0.5, 0.0], {"end": 0.7}, "two times"),
        ([1.0, 0.0], {"indices": np.arange(3)}, r"indices of the shape \(2,\), got \(3,\)"),
        ([1.0, 0.0], {"initial": jnp.zeros((2, 3))}, r"initial has the shape \(2, 3\), not \(2, 2\)"),
        ([1.0, 0.0], {"noise": {"step": np.zeros((1, 2, 2))}}, "the solver draws no noise 'step' \\(it draws none\\)"),
    ],
)
def test_mistakes(grid, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        sample(EXACT, solvers.ddim(), np.array(grid), jax.random.key(0), (2, 2), **kwargs)


class Flips:
    """Bits as int32, each flipped with the probability t / 2: a process that is not Gaussian."""

    num_steps = None

    def prior(self, key, shape, t=1.0):
        return jax.random.bernoulli(key, 0.5, shape).astype(jnp.int32)

    def corrupt(self, key, x0, t):
        flip = jax.random.bernoulli(key, expand(jnp.asarray(t) / 2, x0), x0.shape)
        return jnp.where(flip, 1 - x0, x0), flip


def flips_solver():
    """Ends in the prediction; on the way, noises it again with uniform numbers."""

    def step(denoiser, x, state, t, s, noise):
        assert x.dtype == jnp.int32 and t.dtype == s.dtype == jnp.float32
        x0 = denoiser(x, t)
        flip = noise("step", jax.random.uniform) < s / 2
        assert noise("other", jax.random.gumbel, (3, 2)).shape == (4, 3, 2)
        return jnp.where(flip, 1 - x0, x0), state

    return Solver(lambda x, count: (), step, check=lambda process, times: None)


def test_a_process_that_is_not_gaussian_is_sampled_by_its_own_solver():
    process = Flips()
    assert isinstance(process, Corruption) and isinstance(PROCESS, Corruption)
    denoiser = Denoiser(lambda x, t: jnp.ones_like(x), process)
    run = lambda indices: sample(  # noqa: E731
        denoiser, flips_solver(), grids.uniform(3), jax.random.key(0), (4, 5), indices=indices, trajectory=True
    )
    x, path = run(None)
    assert x.dtype == jnp.int32 and (x == 1).all() and path.shape == (4, 4, 5) and 0 < path[0].mean() < 1
    np.testing.assert_array_equal(run(jnp.array([3, 2, 1, 0]))[1][:, ::-1], path)


def test_what_needs_a_gaussian_process_says_so():
    denoiser = Denoiser(lambda x, t: x, Flips())
    for name in GAUSSIAN_SOLVERS:
        with pytest.raises(ConfigError, match="needs a Gaussian process, but this one is Flips: use one of that"):
            sample(denoiser, registry.build("solver", name), grids.uniform(3), jax.random.key(0), (4, 5))
    for grid in (grids.karras(3), grids.log_snr(3), registry.build("grid", {"name": "edm_ve", "num_steps": 3})):
        with pytest.raises(ConfigError, match="grid '.*' needs a Gaussian process, but this one is Flips: use 'uniform'"):
            sample(denoiser, flips_solver(), grid, jax.random.key(0), (4, 5))
    with pytest.raises(ConfigError, match="DDIM's inversion needs a Gaussian"):
        invert(denoiser, grids.uniform(3), jnp.ones((4, 5)))
