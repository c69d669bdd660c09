"""Trajectories of diffusers' schedulers and of ours: one model of the noise, the same times, the same draws.

The model is a nonlinear function of x and t, evaluated in float64 for both. States are compared in x_t at every time of
the grid, to 1e-4 of the largest. diffusers' tables are float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import Denoised, Denoiser, Process
from diffusion_jax.sampling import grids, solvers
from tests.oracles import QUICK, no_noise
from tests.peers import peer, relative

SHAPE = (3, 4)


def eps_of(xp, x, alpha, sigma):
    """What the noise is in data of two lumps, whatever the process."""
    variance = 0.04 * alpha**2 + sigma**2
    return sigma * (x - alpha * 0.6 * xp.tanh(alpha * 0.6 * x / variance)) / variance


def denoiser_of(process: Process) -> Denoiser:
    def function(x, t):
        alpha, sigma = (value[:, None] for value in process.alpha_sigma(t))
        eps = eps_of(jnp, x, alpha, sigma)
        return Denoised((x - sigma * eps) / alpha, eps)

    return Denoiser(function, process)


def ours(solver, process: Process, times, start, draws=None) -> np.ndarray:
    """Every state of a run whose noise is given, [N + 1, *SHAPE]; step i draws draws[i] by the name "step"."""
    times = np.asarray(times, np.float64)
    solver.check(process, times)

    def step(x, state, t, s, z):
        return solver.step(denoiser_of(process), x, state, t, s, lambda name: {"step": z}[name])

    compiled = jax.jit(step, compiler_options=QUICK)
    x = jnp.asarray(start, jnp.float32)
    states, state = [x], solver.init(x, len(times) - 1)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        z = jnp.zeros_like(x) if draws is None else jnp.asarray(draws[i], jnp.float32)
        x, state = compiled(x, state, jnp.float32(t), jnp.float32(s), z)
        states.append(x)
    return np.stack(states)


def scheduler_of(name: str, **config):
    return getattr(peer("diffusers"), name)(num_train_timesteps=1000, **config)


def theirs(scheduler, start, *, scale: bool, step: Callable | None = None, levels=None) -> tuple[np.ndarray, np.ndarray]:
    """Every sample of a scheduler's run, and its levels sigma / alpha where it steps.

    Args:
      start: its first sample.
      scale: its samples are x / alpha.
      levels: sigma / alpha at which the noise is asked for, where not the scheduler's own.
    """
    torch = peer("torch")
    generator, samples, visited = torch.Generator().manual_seed(0), [start], []
    levels = getattr(scheduler, "sigmas", None) if levels is None else levels
    for i, timestep in enumerate(scheduler.timesteps):
        if levels is not None:
            level = float(levels[i])
        else:
            product = float(scheduler.alphas_cumprod[int(timestep)])
            level = np.sqrt((1 - product) / product)
        alpha = 1 / np.sqrt(1 + level**2)
        x = samples[-1] * alpha if scale else samples[-1]
        eps = torch.from_numpy(eps_of(np, x, alpha, alpha * level)).float()
        sample = torch.from_numpy(samples[-1]).float()
        stepped = (step or _step)(scheduler, eps, timestep, sample, generator)
        samples.append(stepped.numpy().astype(np.float64))
        visited.append(level)
    return np.stack(samples), np.array(visited)


def _step(scheduler, eps, timestep, sample, generator):
    return scheduler.step(eps, timestep, sample).prev_sample


def _drawing_step(scheduler, eps, timestep, sample, generator):
    return scheduler.step(eps, timestep, sample, generator=generator).prev_sample


def draws_of(count: int) -> np.ndarray:
    """What a scheduler's generator draws, in order."""
    torch = peer("torch")
    generator = torch.Generator().manual_seed(0)
    return np.stack([torch.randn(SHAPE, generator=generator).numpy() for _ in range(count)])


def start_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE)


def times_of_levels(process: Process, levels) -> np.ndarray:
    """The times of levels sigma / alpha, and the final 0."""
    return np.append(process.schedule.inverse(-2 * np.log(np.asarray(levels, np.float64))), 0.0)


def times_of_indices(indices) -> np.ndarray:
    return np.append((np.asarray(indices, np.float64) + 1) / 1000, 0.0)


def check_closeness(found: np.ndarray, expected: np.ndarray) -> None:
    assert relative(found, expected) < 1e-4
    assert np.abs(expected[0] - expected[-1]).max() > 0.3  # something was sampled


LINEAR = Process("linear")


@pytest.mark.parametrize(
    ("scheduler", "config", "eta", "solver"),
    [
        ("DDPMScheduler", {"variance_type": "fixed_small"}, None, solvers.ddpm("fixed_small")),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, None, solvers.ddpm("fixed_large")),
        ("DDIMScheduler", {}, 0.0, solvers.ddim()),
        ("DDIMScheduler", {}, 0.7, solvers.ddim(0.7)),
    ],
    ids=["ddpm-small", "ddpm-large", "ddim", "ddim-eta"],
)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_chains(scheduler, config, eta, solver, spacing):
    """On 20 of 1,000 steps, which both libraries take as one step of the chain of those times.

    With the large variance and a grid whose last index is not 0, theirs leaves noise in the result; ours never does.
    """
    peer_of = scheduler_of(scheduler, clip_sample=False, timestep_spacing=spacing, **config)
    peer_of.set_timesteps(20)

    def step(scheduler, eps, timestep, sample, generator):
        options = {"generator": generator} | ({} if eta is None else {"eta": eta})
        return scheduler.step(eps, timestep, sample, **options).prev_sample

    grid = getattr(grids, spacing)(20)(LINEAR)
    np.testing.assert_allclose(grid, times_of_indices(peer_of.timesteps.numpy()))
    expected, _ = theirs(peer_of, start_of(), scale=False, step=step)
    found = ours(solver, LINEAR, grid, start_of(), draws_of(20))
    if (config.get("variance_type"), spacing) == ("fixed_large", "trailing"):
        assert relative(found[:-1], expected[:-1]) < 1e-4
        noise = np.sqrt(1 - float(peer_of.alphas_cumprod[49])) * draws_of(20)[-1]
        assert relative(found[-1] + noise, expected[-1]) < 1e-4
    else:
        check_closeness(found, expected)


@pytest.mark.parametrize("count", [3, 7, 30])
def test_trailing_times_of_steps_that_do_not_divide_the_chain(count):
    peer_of = scheduler_of("DDIMScheduler", timestep_spacing="trailing")
    peer_of.set_timesteps(count)
    np.testing.assert_allclose(grids.trailing(count)(LINEAR), times_of_indices(peer_of.timesteps.numpy()))


@pytest.mark.parametrize(
    ("scheduler", "config", "count", "grid"),
    [
        ("DPMSolverMultistepScheduler", {}, 7, grids.dpm_solver(7)),
        ("DPMSolverMultistepScheduler", {}, 23, grids.dpm_solver(23)),
        ("DEISMultistepScheduler", {}, 20, grids.dpm_solver(20)),
        ("UniPCMultistepScheduler", {}, 15, grids.dpm_solver(15)),
        (
            "DPMSolverMultistepScheduler",
            {"timestep_spacing": "leading", "steps_offset": 1},
            12,
            grids.dpm_solver(12, "leading", 1),
        ),
        ("LCMScheduler", {}, 4, grids.lcm(4)),
        ("LCMScheduler", {"original_inference_steps": 100}, 7, grids.lcm(7, 100)),
        ("TCDScheduler", {}, 3, grids.lcm(3)),
    ],
)
def test_indices_of_grids(scheduler, config, count, grid):
    peer_of = scheduler_of(scheduler, **config)
    peer_of.set_timesteps(count)
    np.testing.assert_allclose(grid(LINEAR), times_of_indices(peer_of.timesteps.numpy()))


@pytest.mark.parametrize("tokens", [None, 256, 1024, 4096])
@pytest.mark.parametrize("own_shift", [1.0, 2.0])
def test_sigmas_of_flow_matching(tokens, own_shift):
    """Stable Diffusion 3's and Flux's; the schedule's own shift moves the times, not the sigmas."""
    process = Process({"name": "straight_line", "shift": own_shift}, prediction="velocity")
    sigmas = lambda grid: process.schedule.alpha_sigma(grid(process))[1]  # noqa: E731
    name, kwargs = "FlowMatchEulerDiscreteScheduler", {}
    if tokens is None:
        peer_of, options = scheduler_of(name, shift=3.0), {"shift": 3.0}
    else:
        peer_of, options = scheduler_of(name, use_dynamic_shifting=True), {"tokens": tokens}
        slope = (1.15 - 0.5) / (4096 - 256)  # as in Flux's pipeline
        kwargs["mu"] = tokens * slope + 0.5 - slope * 256
    peer_of.set_timesteps(28, **kwargs)
    np.testing.assert_allclose(sigmas(grids.flow(28, train_steps=1000, **options)), peer_of.sigmas, rtol=1e-5)
    peer_of.set_timesteps(sigmas=np.linspace(1.0, 1 / 28, 28), **kwargs)
    np.testing.assert_allclose(sigmas(grids.flow(28, **options)), peer_of.sigmas, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_euler(spacing):
    """In x / alpha there, in x here."""
    peer_of = scheduler_of("EulerDiscreteScheduler", timestep_spacing=spacing)
    peer_of.set_timesteps(20)
    _check_scaled(peer_of, solvers.euler(), peer_of.sigmas[:-1])


def test_euler_ancestral():
    peer_of = scheduler_of("EulerAncestralDiscreteScheduler")
    peer_of.set_timesteps(20)
    _check_scaled(peer_of, solvers.euler_ancestral(), peer_of.sigmas[:-1], draws_of(20), _drawing_step)


def _check_scaled(peer_of, solver, levels, draws=None, step=None, every: int = 1, asked=None):
    times = times_of_levels(LINEAR, levels)
    alpha = LINEAR.schedule.alpha_sigma(times)[0]
    expected, _ = theirs(peer_of, start_of() / alpha[0], scale=True, step=step, levels=asked)
    expected = np.append(expected[:-1][::every], expected[-1:], 0) * alpha[:, None, None]
    check_closeness(ours(solver, LINEAR, times, start_of(), draws), expected)


def test_lms():
    """Of order 4, from the fourth step on; their last step, to level 0, keeps the order too."""
    peer_of = scheduler_of("LMSDiscreteScheduler")
    peer_of.set_timesteps(20)
    _check_scaled(peer_of, solvers.lms(), peer_of.sigmas[:-1])


@pytest.mark.parametrize("ancestral", [False, True])
def test_kdpm2(ancestral):
    """Two evaluations a step, the second at the level in the middle; one at the last step."""
    count = 15
    peer_of = scheduler_of("KDPM2AncestralDiscreteScheduler" if ancestral else "KDPM2DiscreteScheduler")
    peer_of.set_timesteps(count)
    middle = peer_of.sigmas_interpol[0::2] if ancestral else peer_of.sigmas_interpol[1::2]
    asked = np.stack([peer_of.sigmas[0::2][:count], middle[:count]], 1).ravel()
    solver, draws, step = solvers.kdpm2(), None, None
    if ancestral:
        solver, step = solvers.kdpm2_ancestral(), _drawing_step
        draws = np.append(draws_of(count - 1), np.zeros((1, *SHAPE)), 0)  # none at the last
    _check_scaled(peer_of, solver, peer_of.sigmas[0::2][:count], draws, step, every=2, asked=asked)


def test_heun_in_sigma():
    """They correct in x / alpha and sigma / alpha, as EDM does: `space="sigma"`. Two evaluations a step, one at the last."""
    peer_of = scheduler_of("HeunDiscreteScheduler", use_karras_sigmas=True)
    peer_of.set_timesteps(15)
    _check_scaled(peer_of, solvers.heun(space="sigma"), peer_of.sigmas[::2], every=2)


@pytest.mark.parametrize("space", ["x", "sigma"])
def test_heun_where_alpha_is_one(space):
    """The same levels on a variance-exploding process: both spaces are theirs."""
    process = Process("edm", prediction="edm")
    heun = scheduler_of("HeunDiscreteScheduler", use_karras_sigmas=True)
    heun.set_timesteps(15)
    heun.sigmas = heun.sigmas * (60 / heun.sigmas[0])  # that of the chain is more than the process reaches
    samples, torch = [start_of() * 60], peer("torch")
    for i, timestep in enumerate(heun.timesteps):
        eps = torch.from_numpy(eps_of(np, samples[-1], 1.0, float(heun.sigmas[i]))).float()
        samples.append(_step(heun, eps, timestep, torch.from_numpy(samples[-1]).float(), None).numpy().astype(np.float64))
    expected = np.stack([*samples[:-1:2], samples[-1]])
    times = times_of_levels(process, heun.sigmas[::2])
    check_closeness(ours(solvers.heun(space=space), process, times, start_of() * 60), expected)


@pytest.mark.parametrize(
    ("config", "solver"),
    [
        ({"solver_order": 2}, solvers.dpmpp_2m()),
        ({"solver_order": 2, "solver_type": "heun"}, solvers.dpmpp_2m("taylor")),
        ({"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, solvers.dpmpp_2m_sde()),
        ({"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, solvers.dpmpp_2m_sde(1.0, "taylor")),
        ({"solver_order": 3}, solvers.dpmpp_3m("library")),
    ],
    ids=["2m", "2m-taylor", "sde-2m", "sde-2m-taylor", "3m-library"],
)
def test_dpm_solver_multistep(config, solver):
    """On 15 steps, for which they lower the order of the last alone, as we always do."""
    peer_of = scheduler_of("DPMSolverMultistepScheduler", **config)
    peer_of.set_timesteps(15)
    expected, _ = theirs(peer_of, start_of(), scale=False, step=_drawing_step)
    times = times_of_indices(peer_of.timesteps.numpy())
    check_closeness(ours(solver, LINEAR, times, start_of(), draws_of(15)), expected)


def test_deis():
    """In log(sigma / alpha). Theirs ends at the chain's first step, with the full order from 15 steps on."""
    peer_of = scheduler_of("DEISMultistepScheduler", solver_order=3)
    peer_of.set_timesteps(20)
    expected, _ = theirs(peer_of, start_of(), scale=False)
    times = np.append(times_of_indices(peer_of.timesteps.numpy())[:-1], 1e-3)
    check_closeness(ours(solvers.deis(3, "log_rho"), LINEAR, times, start_of()), expected)
    assert relative(ours(solvers.deis(2, "log_rho"), LINEAR, times, start_of()), expected) > 1e-3


def test_the_library_form_of_3m_is_not_the_exact_one():
    times = grids.uniform(15)(LINEAR)
    exact, library = (ours(solvers.dpmpp_3m(form), LINEAR, times, start_of()) for form in ("exact", "library"))
    assert relative(exact, library) > 1e-3


def test_dpm_solver_singlestep():
    """On levels even in their logarithm, every other one of theirs is the middle of a step of ours."""
    peer_of = scheduler_of("DPMSolverSinglestepScheduler", solver_order=2, use_exponential_sigmas=True)
    peer_of.set_timesteps(21)
    expected, levels = theirs(peer_of, start_of(), scale=False)
    times = times_of_levels(LINEAR, levels[::2])
    check_closeness(ours(solvers.dpmpp_2s(), LINEAR, times, start_of()), np.append(expected[:-1:2], expected[-1:], 0))


@pytest.mark.parametrize(
    ("order", "b", "corrector"),
    [(1, "bh2", True), (2, "bh2", True), (3, "bh2", True), (2, "bh1", True), (3, "bh1", True), (3, "bh2", False)],
)
def test_unipc(order, b, corrector):
    """Two differences: at order 3 they also lower that of the step before the last; "bh1" to level 0 gives them NaN."""
    disabled = {} if corrector else {"disable_corrector": list(range(15))}
    peer_of = scheduler_of("UniPCMultistepScheduler", solver_order=order, solver_type=b, **disabled)
    peer_of.set_timesteps(15)
    expected, _ = theirs(peer_of, start_of(), scale=False)
    found = ours(solvers.unipc(order, b, corrector), LINEAR, times_of_indices(peer_of.timesteps.numpy()), start_of())
    if b == "bh1":
        assert not np.isfinite(expected[-1]).any() and np.isfinite(found).all()
        found, expected = found[:-1], expected[:-1]
    same = len(found) if order < 3 else 14  # the start and 13 steps
    check_closeness(found[:same], expected[:same])
    assert order < 3 or relative(found, expected) > 1e-4


@pytest.mark.parametrize("warm_up", ["linear", "runge_kutta"])
def test_pndm(warm_up):
    peer_of = scheduler_of("PNDMScheduler", skip_prk_steps=warm_up == "linear", set_alpha_to_one=True)
    peer_of.set_timesteps(20)
    expected, _ = theirs(peer_of, start_of(), scale=False)
    if warm_up == "linear":
        expected = np.delete(expected, 1, 0)  # the first step, before it is corrected
    else:
        expected = np.append(expected[:12:4], expected[12:], 0)  # four evaluations a step, three times
    check_closeness(ours(solvers.pndm(warm_up), LINEAR, grids.leading(20)(LINEAR), start_of()), expected)


@pytest.mark.parametrize("config", [{}, {"timestep_scaling": 0.01}], ids=["default", "visible-scalings"])
def test_lcm(config):
    """With the published scalings hardly anything of x_t is kept at the times visited; with the others it is."""
    peer_of = scheduler_of("LCMScheduler", beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False, **config)
    peer_of.set_timesteps(4)
    expected, _ = theirs(peer_of, start_of(), scale=False, step=_drawing_step)
    times = times_of_indices(peer_of.timesteps.numpy())
    assert relative(ours(solvers.lcm(**config), LINEAR, times, start_of(), draws_of(4)), expected) < 1e-4
    bare = ours(solvers.lcm(timestep_scaling=1e6), LINEAR, times, start_of(), draws_of(4))
    assert (relative(bare, expected) > 1e-3) == bool(config)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd(gamma):
    """Theirs, where gamma is called eta, ends at the chain's first step."""
    peer_of = scheduler_of("TCDScheduler", beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    peer_of.set_timesteps(4)

    def step(scheduler, eps, timestep, sample, generator):
        return scheduler.step(eps, timestep, sample, eta=gamma, generator=generator).prev_sample

    expected, _ = theirs(peer_of, start_of(), scale=False, step=step)
    times = np.append(times_of_indices(peer_of.timesteps.numpy())[:-1], 1e-3)
    check_closeness(ours(solvers.tcd(gamma), LINEAR, times, start_of(), draws_of(4)), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_flows(name, shift):
    """On the straight line, in x and t: diffusers' velocity is eps - x0, and its sigmas are our (unshifted) times."""
    torch, count = peer("torch"), 10
    process = Process("straight_line", prediction="velocity")
    peer_of = scheduler_of(
        {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}[name], shift=shift
    )
    peer_of.set_timesteps(count)
    every = 2 if name == "heun" else 1
    samples = [start_of()]
    for i, timestep in enumerate(peer_of.timesteps):
        t = float(peer_of.sigmas[i])
        eps = eps_of(np, samples[-1], 1 - t, t) if t < 1 else samples[-1]
        x0 = (samples[-1] - t * eps) / (1 - t) if t < 1 else 0 * eps
        stepped = peer_of.step(torch.from_numpy(eps - x0).float(), timestep, torch.from_numpy(samples[-1]).float())
        samples.append(stepped.prev_sample.numpy().astype(np.float64))
    expected = np.stack([*samples[:-1:every], samples[-1]])
    times = np.append(peer_of.sigmas[:-1:every].numpy(), 0.0)[: count + 1]
    times[-1] = 0.0

    def function(x, t):
        t = t[:, None]
        eps = jnp.where(t < 1, eps_of(jnp, x, 1 - t, t), x)
        return Denoised(jnp.where(t < 1, (x - t * eps) / jnp.where(t < 1, 1 - t, 1.0), 0.0), eps)

    solver, x = getattr(solvers, name)(), jnp.asarray(start_of(), jnp.float32)
    states, state = [x], solver.init(x, count)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x, state = solver.step(Denoiser(function, process), x, state, jnp.float32(t), jnp.float32(s), no_noise)
        states.append(x)
    check_closeness(np.stack(states), expected)
