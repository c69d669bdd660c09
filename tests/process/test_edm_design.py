"""The four columns of EDM's design table: published numbers, and the table's own formulas in float64."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, edm_design, losses, schedules, weightings
from diffusion_jax.process.noise_levels import on_schedule
from diffusion_jax.registry import build

LEVELS = np.array([0.03, 0.2, 1.0, 7.0, 60.0])
SD = 0.5

# Table 1 of the paper, as plain functions of sigma: (c_skip, c_out, c_in, c_noise, lambda).
BETA_D, BETA_MIN, M = 19.9, 0.1, 1000
U = edm_design.iddpm_table()
TABLE = {
    "vp": (
        lambda s: 1.0, lambda s: -s, lambda s: 1 / np.sqrt(s**2 + 1),
        lambda s: 999 * (np.sqrt(BETA_MIN**2 + 2 * BETA_D * np.log(s**2 + 1)) - BETA_MIN) / BETA_D, lambda s: 1 / s**2,
    ),
    "ve": (lambda s: 1.0, lambda s: s, lambda s: 1.0, lambda s: np.log(s / 2), lambda s: 1 / s**2),
    "iddpm": (
        lambda s: 1.0, lambda s: -s, lambda s: 1 / np.sqrt(s**2 + 1),
        lambda s: M - 1 - np.argmin(np.abs(U[:-1] - s)), lambda s: 1 / s**2,
    ),
    "edm": (
        lambda s: SD**2 / (s**2 + SD**2), lambda s: s * SD / np.sqrt(s**2 + SD**2), lambda s: 1 / np.sqrt(s**2 + SD**2),
        lambda s: np.log(s) / 4, lambda s: (s**2 + SD**2) / (s * SD) ** 2,
    ),
}  # fmt: skip


def test_published_levels():
    np.testing.assert_allclose(U[[0, 1, 8, 9, 999, 1000]], [20291.17, 641.66, 80.2037, 71.2912, 0.0064254, 0], rtol=1e-5)
    vp = schedules.vp_sde()
    levels = [np.exp(-0.5 * vp.log_snr(t)) for t in (1e-3, 1.0)]
    np.testing.assert_allclose(levels, [0.010485993, 152.16697], rtol=1e-7)
    edm = Process(**edm_design.column("edm")["process"])
    t = edm.schedule.inverse(-2 * jnp.log(jnp.array([0.1, 1.0, 10.0])))
    np.testing.assert_allclose(build("weighting", "edm")(edm, t), [104, 5, 4.01], rtol=1e-5)


def network(x, noise):
    """Anything that is not linear and sees both inputs."""
    return np.sin(3 * x + 0.7) * (1 + 0.1 * noise[:, None])


@pytest.mark.parametrize("column", edm_design.COLUMNS)
def test_a_column_denoises_as_the_table_says(column):
    """D(y; sigma) = c_skip y + c_out F(c_in y; c_noise), in float64, beside the library's bound denoiser."""
    process = Process(**edm_design.column(column)["process"])
    c_skip, c_out, c_in, c_noise, weight = TABLE[column]
    y = np.random.default_rng(0).normal(size=(len(LEVELS), 6)) * np.hypot(LEVELS, SD)[:, None]
    wanted = np.stack(
        [
            c_skip(s) * row + c_out(s) * network(c_in(s) * row[None], np.array([c_noise(s)]))[0]
            for s, row in zip(LEVELS, y, strict=True)
        ]
    )
    # The level's own time, not that of the nearest trained one: the network alone is told a rounded level.
    schedule = build("schedule", process.schedule)
    exact = edm_design.iddpm_levels(rounded=False) if column == "iddpm" else schedule
    t = jnp.asarray(exact.inverse(-2 * np.log(LEVELS)), jnp.float32)
    alpha = process.alpha_sigma(t)[0]
    apply = lambda params, x, noise, cond: jnp.sin(3 * x + 0.7) * (1 + 0.1 * noise[:, None])  # noqa: E731
    found = process.bind(apply, None)(alpha[:, None] * y.astype(np.float32), t)
    scale = np.maximum(1.0, LEVELS)[:, None]
    np.testing.assert_allclose(found.x0 / scale, wanted / scale, atol=2e-3)
    eps = (y - wanted) / LEVELS[:, None]
    np.testing.assert_allclose(found.eps, eps, atol=2e-3 * np.abs(eps).max())
    w = build("weighting", edm_design.column(column)["weighting"])
    np.testing.assert_allclose(w(process, t), [weight(s) for s in LEVELS], rtol=1e-3)


def test_the_target_of_the_first_three_columns_is_the_noise_and_its_weight_one():
    """lambda c_out^2 = 1: plain squared error in the target's own space, as those systems were trained."""
    x0, eps = jnp.ones((3, 2)), jnp.array([[0.3, -1.0], [2.0, 0.5], [0.1, 0.1]])
    for column, sign in (("vp", 1), ("ve", -1), ("iddpm", 1)):
        process = Process(**edm_design.column(column)["process"])
        t = jnp.array([0.2, 0.5, 0.9])
        np.testing.assert_allclose(process.target(x0, eps, t), sign * eps)
        w = weightings.in_target_space(build("weighting", "snr"), process, t)
        np.testing.assert_allclose(w, 1, rtol=1e-5)


def test_vp_preconditioning_is_eps_prediction_where_variance_is_preserved():
    ours, plain = Process("vp_sde", "edm_vp"), Process("vp_sde", "eps", noise_input="rescaled_timestep")
    x, t = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32), jnp.array([0.01, 0.3, 0.7, 1.0])
    np.testing.assert_allclose(ours.network_inputs(x, t)[0], plain.network_inputs(x, t)[0], rtol=1e-6)
    for a, b in zip(ours.decode(x, 2 * x, t)[:2], plain.decode(x, 2 * x, t)[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_training_levels_have_the_distribution_of_their_column():
    """By quantiles of ln sigma: the paper's "training" rows."""
    key, count = jax.random.key(0), 20_000
    q = np.linspace(0.05, 0.95, 7)
    vp_t = 1e-5 + (1 - 1e-5) * q
    wanted = {
        "vp": 0.5 * np.log(np.expm1(BETA_D * vp_t**2 / 2 + BETA_MIN * vp_t)),
        "ve": np.log(0.02) + q * np.log(100 / 0.02),
        "iddpm": np.log(np.quantile(U[:-1], q)),
        "edm": -1.2 + 1.2 * stats.norm.ppf(q),
    }
    for name in edm_design.COLUMNS:
        parts = edm_design.column(name)
        process = Process(**parts["process"])
        t, weight = build("times", parts["times"]).sample(process, key, count, None)
        assert (np.asarray(weight) == 1).all()
        found = np.quantile(-0.5 * np.asarray(process.log_snr(t)), q)
        np.testing.assert_allclose(found, wanted[name], atol=0.12, err_msg=name)


def test_training_levels_do_not_depend_on_the_schedule():
    """A column's training row beside any other schedule draws the same levels, where that schedule has them."""
    key = jax.random.key(3)
    for name, schedule in (
        ("log_uniform", "vp_sde"),
        ("vp_uniform", "ve"),
        ("level_uniform", {"name": "edm", "sigma_max": 3e4}),
    ):
        home = {"log_uniform": "ve", "vp_uniform": "vp_sde", "level_uniform": "iddpm_levels"}[name]
        drawn = []
        for where in (home, schedule):
            process = Process(where, "edm")
            drawn.append(process.log_snr(build("times", name).sample(process, key, 200, None)[0]))
        kept = np.abs(np.asarray(drawn[0]) / 2) < np.log(49)  # what all of them have
        np.testing.assert_allclose(drawn[0][kept], drawn[1][kept], atol=3e-3)


@pytest.mark.parametrize("times", ["log_uniform", "vp_uniform", "level_uniform"])
def test_training_levels_stay_within_the_schedules_own(times):
    process = Process({"name": "edm", "sigma_min": 0.5, "sigma_max": 20.0}, "edm")
    t, _ = build("times", times).sample(process, jax.random.key(0), 500, None)
    levels = np.exp(-0.5 * np.asarray(process.log_snr(t)))
    np.testing.assert_allclose([levels.min(), levels.max()], [0.5, 20], rtol=1e-4)  # both ends are cut off


def test_levels_are_rounded_to_the_nearest_in_sigma():
    schedule = edm_design.iddpm_levels()
    sigma = np.exp(np.random.default_rng(0).uniform(np.log(0.001), np.log(3e4), 400))
    nearest = np.argmin(np.abs(U - sigma[:, None]), axis=1)  # u_M = 0 among them
    assert (nearest == M).any()
    for given, tolerance in ((np.float64, 1e-12), (jnp.float32, 2e-5)):
        t = schedule.inverse(-2 * (np if given is np.float64 else jnp).log(sigma.astype(given)))
        assert (np.asarray(t) * M - (M - nearest)).__abs__().max() < 1e-3
        np.testing.assert_allclose(np.exp(-0.5 * schedule.log_snr(t)), U[nearest], rtol=tolerance)
    told = Process("iddpm_levels", "edm_vp", noise_input="nearest_level").noise_level(jnp.asarray(t))
    np.testing.assert_array_equal(told, M - 1 - nearest)
    own = np.arange(1, M + 1) / M
    np.testing.assert_array_equal(schedule.inverse(schedule.log_snr(own)), own)


@pytest.mark.slow
def test_every_mixture_of_columns_trains():
    """4 x 4 x 4 rows: process of one, times of another, weighting of a third; the loss is finite and has a gradient."""
    x0 = jax.random.normal(jax.random.key(0), (16, 4))
    apply = lambda w, x, noise, cond: w * jnp.tanh(x) * (1 + 1e-3 * noise[:, None])  # noqa: E731
    columns = [edm_design.column(name) for name in edm_design.COLUMNS]
    for process, times, weighting in itertools.product(columns, columns, columns[2:]):
        built = Process(**process["process"])

        def loss(w, built=built, times=times, weighting=weighting):
            return losses.denoising(
                built, apply, w, x0, jax.random.key(1), times=times["times"], weighting=weighting["weighting"]
            )[0]

        value, slope = jax.value_and_grad(loss)(jnp.float32(0.5))
        assert np.isfinite(value) and np.isfinite(slope) and slope != 0


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: edm_design.column("edn"), "column: unknown 'edn'.*known: vp, ve, iddpm, edm"),
        (lambda: edm_design.ve(2.0, 1.0), "sigma_min < sigma_max"),
        (lambda: edm_design.iddpm_levels(1), "num_levels must be a whole number at least 2"),
        (lambda: build("times", {"name": "log_uniform", "sigma_min": 0.0}), "sigma_min must be a number above 0"),
        (lambda: build("times", {"name": "vp_uniform", "t_min": 0.0}), r"t_min must be a number in \(0, 1\)"),
        (lambda: Process("edm", "edm", noise_input="nearest_leve"), "noise_input: unknown .*did you mean 'nearest_level'"),
    ],
)
def test_misfits_are_named(build_it, message):
    with pytest.raises(ConfigError, match=message):
        build_it()


@pytest.mark.parametrize("told", ["vp_time", "log_half_sigma", "nearest_level"])
def test_what_networks_are_told_is_a_value_and_of_the_level_alone(told):
    """As a student must have it like its teacher, and as sampling on another schedule needs it."""
    process, same = (Process("vp_sde", "edm_vp", noise_input=told) for _ in range(2))
    assert process.noise_input == same.noise_input
    moved = on_schedule(process, "cosine_continuous")
    level = jnp.array([-3.0, 0.0, 3.0])
    there, here = (each.noise_level(each.schedule.inverse(level)) for each in (moved, process))
    np.testing.assert_allclose(there, here, rtol=1e-3)
