"""Averages made after training, against averages that training kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from diffusion_jax import systems
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema, post_hoc_ema
from diffusion_jax.training.checkpoints import Checkpointer, restore_weights
from diffusion_jax.training.post_hoc_ema import Profile
from diffusion_jax.training.state import TrainState
from tests.training import tiny

STORED = (0.05, 0.10)


def trajectory(steps, size=20, seed=0):
    """Parameters that settle and jitter, as those in training do: float64 [steps, size]."""
    rng = np.random.default_rng(seed)
    t = np.arange(1, steps + 1)[:, None] / steps
    drift = rng.standard_normal(size) * np.exp(-4 * t) + rng.standard_normal(size) * t
    return 1 + drift + 0.05 * rng.standard_normal((steps, size))


def tracked(values, sigma_rel):
    """The averages that training would keep, after every step."""
    average, found, rows = ema.Power(sigma_rel), jnp.zeros(values.shape[1]), []
    update = jax.jit(lambda old, new, step: ema.update(average, old, new, step))
    for step, value in enumerate(values, start=1):
        found = update(found, jnp.asarray(value, jnp.float32), jnp.int32(step))
        rows.append(np.asarray(found))
    return np.stack(rows)


@pytest.mark.parametrize(
    ("sigma_rel", "exponent"), [(0.05, 16.972199), (0.1, 6.937204), (0.13, 4.603597), (0.2, 1.826214), (0.25, 0.719824)]
)
def test_published_exponents(sigma_rel, exponent):
    g = ema.power_exponent(sigma_rel)
    assert g == pytest.approx(exponent, abs=1e-6)
    assert np.sqrt(g + 1) / ((g + 2) * np.sqrt(g + 3)) == pytest.approx(sigma_rel, rel=1e-9)


def test_overlaps_are_integrals():
    def density(profile, t):
        g = ema.power_exponent(profile.sigma_rel)
        return (g + 1) / profile.end * (t / profile.end) ** g * (t <= profile.end)

    profiles = [Profile(40, 0.05), Profile(40, 0.2), Profile(64, 0.1)]
    for number, first in enumerate(profiles):
        for other, second in enumerate(profiles):
            area = integrate.quad(lambda t, a=first, b=second: density(a, t) * density(b, t), 0, min(first.end, second.end))[0]
            assert post_hoc_ema.overlaps(profiles, profiles)[number, other] == pytest.approx(area, rel=1e-6)


def test_it_reproduces_what_training_kept():
    steps, every = 2048, 32
    values = trajectory(steps)
    kept = {sigma_rel: tracked(values, sigma_rel) for sigma_rel in (*STORED, 0.075)}
    ends = range(every, steps + 1, every)
    stored = [Profile(end, sigma_rel) for end in ends for sigma_rel in STORED]
    snapshots = np.stack([kept[sigma_rel][end - 1] for end in ends for sigma_rel in STORED]).astype(np.float64)
    for end, sigma_rel in [(steps, 0.05), (steps, 0.10), (steps, 0.075), (1024, 0.075)]:
        factors = post_hoc_ema.coefficients(stored, Profile(end, sigma_rel))
        assert factors.sum() == pytest.approx(1, abs=1e-12)
        made, expected = factors @ snapshots, kept[sigma_rel][end - 1]
        assert np.linalg.norm(made - expected) / np.linalg.norm(expected) < 1e-4, (end, sigma_rel)
        assert not factors[[profile.end > end for profile in stored]].any()
    # A profile that nothing tracked: by its definition.
    weights = np.diff((np.arange(steps + 1) / steps) ** (ema.power_exponent(0.13) + 1))
    made = post_hoc_ema.coefficients(stored, Profile(steps, 0.13)) @ snapshots
    np.testing.assert_allclose(made, weights @ values, rtol=1e-3)


def test_the_residual_says_when_snapshots_are_too_few():
    target = Profile(64, 0.2)
    few, many = ([Profile(end, s) for end in range(every, 65, every) for s in STORED] for every in (32, 2))
    residuals = [post_hoc_ema.residual(stored, post_hoc_ema.coefficients(stored, target), target) for stored in (few, many)]
    assert residuals[0] > 0.1 > 0.01 > residuals[1]
    own = [*few, target]
    assert post_hoc_ema.residual(own, post_hoc_ema.coefficients(own, target), target) < 1e-6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two averages and checkpoints at 8, 16, 24 and 32, one step of which was skipped; and what 0.1 tracked."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    config = configs.complete(
        {
            **tiny.CONFIG,
            "training": {"ema": [{"name": "power", "sigma_rel": s} for s in STORED]},
        }
    )
    configs.claim(workdir, config)
    system = systems.from_config(config)
    start = jax.eval_shape(system.init, jax.random.key(0))
    values = trajectory(32, size=1)
    averages = {f"power_{s}": tracked(values, s)[:, 0] for s in STORED}
    checkpointer = Checkpointer(workdir, keep_last=10)
    for taken in (8, 16, 24, 32):
        fill = lambda value: jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), start)  # noqa: E731
        stored = {label: fill(rows[taken - 1]) for label, rows in averages.items()}
        skipped = int(taken > 8)
        step = taken + skipped
        state = TrainState(jnp.int32(step), fill(values[taken - 1, 0]), stored, {}, {}, jnp.int32(skipped))
        checkpointer.save(state, step, config)
    checkpointer.close()
    return workdir, values[:, 0], averages


def load(workdir, weights):
    """(parameters, step) of a run."""
    return restore_weights(workdir, tiny.prepare().target.params, weights)


def first(params):
    return jax.tree.leaves(params)[0].ravel()[0]


def test_a_reconstruction_is_a_run(run, tmp_path):
    workdir, values, averages = run
    found = post_hoc_ema.write_run(workdir, tmp_path / "out", 0.1)
    assert found.step == 33 and {profile.end for profile in found.used} == {8, 16, 24, 32}
    params, step = load(tmp_path / "out", "power_0.1")
    np.testing.assert_allclose(first(params), averages["power_0.1"][-1], rtol=1e-4)
    assert step == 33 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    with pytest.raises(CheckpointError, match="holds a run already"):
        post_hoc_ema.write_run(workdir, tmp_path / "out", 0.1, step=17)
    np.testing.assert_allclose(first(load(tmp_path / "out", "raw")[0]), values[-1], rtol=1e-6)
    earlier = post_hoc_ema.reconstruct(workdir, 0.05, step=17)
    np.testing.assert_allclose(first(earlier.params), averages["power_0.05"][15], rtol=1e-4)


def test_the_program_writes_what_programs_can_load(run, tmp_path):
    from diffusion_jax import post_hoc_ema as program

    values = {"workdir": str(run[0]), "out": str(tmp_path / "out"), "sigma_rel": 0.05, "step": 17}
    assert program._work(values, {}) == values["out"]
    params, step = load(tmp_path / "out", "power_0.05")
    np.testing.assert_allclose(first(params), run[2]["power_0.05"][15], rtol=1e-4)
    assert step == 17
    with pytest.raises(ConfigError, match="leave out --config.seed"):
        program._work(values, {"seed": 1})


def test_bad_requests(run, tmp_path):
    workdir = run[0]
    with pytest.raises(ConfigError, match="sigma_rel"):
        post_hoc_ema.reconstruct(workdir, 0.4)
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        post_hoc_ema.reconstruct(workdir, 0.1, step=5)
    with pytest.raises(CheckpointError, match="holds a run already; choose another directory"):
        post_hoc_ema.write_run(workdir, workdir, 0.1)
    configs.claim(tmp_path, {**configs.read(workdir), "training": configs.DEFAULTS["training"]})
    with pytest.raises(CheckpointError, match="keeps no power averages"):
        post_hoc_ema.reconstruct(tmp_path, 0.1)
