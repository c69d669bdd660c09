"""The step: donated, compiled once, microbatches, steps that are skipped, sums on the device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.errors import ConfigError
from diffusion_jax.training import ema
from diffusion_jax.training import step as steps
from diffusion_jax.training.state import Trainable, init_state
from tests.training import tiny


def advance(program, state, step):
    """(state, metric sums) after one step."""
    return program.step(state, program.zero_metrics(), program.put(program.pipeline.batch(step)))


def close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b)


def test_the_state_is_donated():
    program = tiny.prepare()
    state, metrics = program.init(), program.zero_metrics()
    new, _ = program.step(state, metrics, program.put(program.pipeline.batch(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state, metrics)))
    assert int(new.step) == 1


@pytest.mark.parametrize("devices", [1, 4])
def test_microbatches_equal_the_whole_batch(devices):
    """A loss that is a mean over images has the same gradient either way; one that draws noise has not the same draws."""
    sgd = {"name": "sgd", "learning_rate": 0.1, "clip_norm": 0.0}
    states, rows = [], []
    for count in (1, 4):
        program = tiny.prepare(devices, system={"name": "toy", "noiseless": True}, training__accumulate=count, optimizer=sgd)
        state, metrics = advance(program, program.init(), 0)
        states.append(jax.device_get(state))
        rows.append(steps.summarize(jax.device_get(metrics)))
    close(states[0].params, states[1].params, 1e-5)
    assert rows[0].keys() == rows[1].keys()
    close(rows[0], rows[1], 1e-5)
    assert states[0].system_state["seen"] == states[1].system_state["seen"] == 16


def test_microbatches_draw_different_noise():
    program = tiny.prepare(training__accumulate=4, data__source={"name": "noise", "size": 1}, data__batch_size=4)
    _, metrics = advance(program, program.init(), 0)
    assert (np.asarray(metrics["bin_count"]) > 0).sum() > 1  # the same image four times, at different levels


def test_microbatches_are_unrolled_on_a_cpu():
    """Gradients of convolutions inside a while loop are many times slower there."""
    text = tiny.prepare(training__accumulate=4).step.as_text()
    assert text.count(" convolution(") >= 4 * 6  # a scan would have one microbatch's


def test_steps_that_are_not_finite_change_nothing_but_the_counts():
    source = {"name": "noise", "size": 20}
    program = tiny.prepare(system={"name": "toy", "bad_label": 0}, data__batch_size=2, data__source=source)
    labels = [program.pipeline.batch(step)["label"][0] for step in range(30)]
    first_bad = labels.index(0)
    state, skipped = program.init(), 0
    for step in range(first_bad + 2):
        before = jax.device_get(state.as_dict())
        state, metrics = advance(program, state, step)
        after = jax.device_get(state.as_dict())
        bad = labels[step] == 0
        skipped += bad
        assert after["step"] == step + 1 and after["skipped"] == skipped
        for field in ("params", "ema", "opt_state", "system_state"):
            same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before[field], after[field]))
            assert same == bad, field
        metrics = jax.device_get(metrics)
        assert metrics["steps"] == 1 - bad and metrics["bin_count"].sum() == 2 * (1 - bad)
        assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
    assert skipped


def test_averages_count_the_steps_that_were_taken():
    """After three skipped steps the first to be taken starts the average: it is the parameters themselves."""
    program = tiny.prepare(training__ema=[{"name": "power", "sigma_rel": 0.1}])
    state = program.init()
    state, _ = advance(program, dataclasses.replace(state, step=state.step + 3, skipped=state.skipped + 3), 3)
    close(state.ema["power_0.1"], state.params, 1e-6)


def test_the_key_is_of_the_seed_and_the_step_alone():
    def losses(seed):
        still, one_image = {"name": "sgd", "learning_rate": 0.0}, {"name": "noise", "size": 1}
        program = tiny.prepare(optimizer=still, data__source=one_image, seed=seed)
        state, found = program.init(), []
        for step in range(3):
            state, metrics = advance(program, state, step)
            found.append(float(metrics["sums"]["loss"]))
        return found

    first = losses(1)
    assert len(set(first)) == 3 and losses(1) == first and set(losses(2)).isdisjoint(first)


def test_sums_on_the_device():
    """Against numpy, with levels on and beyond the edges, and a step that counts for nothing."""
    rng = np.random.default_rng(0)
    log_snr = np.array([-40.0, -10.0, -9.9, 0.0, 0.1, 9.9, 40.0, np.inf], np.float32)
    expected_sum, expected_count = np.zeros(steps.NUM_BINS), np.zeros(steps.NUM_BINS)
    totals = None
    for finite in (True, False, True, False):
        losses = rng.random(8, np.float32)
        bins = steps._bins({"per_example": jnp.asarray(losses), "log_snr": jnp.asarray(log_snr)})
        found = {"loss": jnp.mean(losses) if finite else jnp.nan, "grad_norm": jnp.float32(2.0)}
        row = steps._metrics(jnp.asarray(finite), found, {"param_norm": jnp.float32(6.0 if finite else np.inf)}, bins)
        totals = row if totals is None else steps.add_metrics(totals, row)
        if finite:
            place = np.digitize(log_snr, steps.BIN_EDGES, right=True)
            np.add.at(expected_sum, place, losses)
            np.add.at(expected_count, place, 1)
    np.testing.assert_allclose(totals["bin_loss"], expected_sum, rtol=1e-6)
    np.testing.assert_array_equal(totals["bin_count"], expected_count)
    row = steps.summarize(jax.device_get(totals))
    assert row["grad_norm"] == 2 and row["param_norm"] == 6 and totals["steps"] == 2 and 0 < row["loss"] < 1
    assert row["loss_by_log_snr/10_to_inf"] == pytest.approx(expected_sum[-1] / expected_count[-1])
    assert "loss_by_log_snr/2.5_to_5" not in row  # no image was there


def test_norms_are_those_of_numpy():
    program = tiny.prepare(optimizer={"name": "sgd", "learning_rate": 0.1, "clip_norm": 0.0})
    before = jax.device_get(program.init().params)
    state, metrics = advance(program, program.init(), 0)
    row, after = steps.summarize(jax.device_get(metrics)), jax.device_get(state.params)
    norm = lambda tree: np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree)))  # noqa: E731
    moved = norm(jax.tree.map(np.subtract, after, before))
    assert row["param_norm"] == pytest.approx(norm(after), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(moved / 0.1, rel=1e-4)


# What a system must have, and may have -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sphere(tiny.Bare):
    """The same on the unit sphere; `finite` False makes every loss infinite."""

    finite: bool = True

    def project(self, params):
        return {"point": {"w": params["point"]["w"] / jnp.linalg.norm(params["point"]["w"])}}

    def losses(self, *args, **kwargs):
        value, aux = super().losses(*args, **kwargs)["point"]
        return {"point": (value + (0.0 if self.finite else jnp.inf), aux)}


def run(system, count, **fields):
    """The states of some steps of plain descent with an average of 0.5, and the metrics of the last."""
    groups = system.init(jax.random.key(0))
    sgd = {group: optax.sgd(0.1) for group in groups}
    step = steps.TrainStep(system, sgd, (ema.Constant(0.5, warmup=False),), 0, **fields)
    state = init_state(system, groups, sgd, step.averages, step.trainable)
    states, jitted, metrics = [state], jax.jit(step), None
    for _ in range(count):
        state, metrics = jitted(state, {"image": jnp.zeros((4, 1))})
        states.append(state)
    return states, steps.summarize(jax.device_get(metrics))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_system_of_required_members_only(accumulate):
    states, row = run(tiny.Bare(), 2, accumulate=accumulate)
    np.testing.assert_allclose(states[-1].params["point"]["w"], [1.6, 0.8], rtol=1e-6)
    assert row["grad_norm"] == pytest.approx(5) and not any("log_snr" in name for name in row)


def test_parameters_are_projected_before_they_are_averaged():
    (first, one, two, *_, last), _ = run(Sphere(), 40)
    expected = np.array([1.3, 0.4]) / np.hypot(1.3, 0.4)
    np.testing.assert_allclose(one.params["point"]["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(one.ema["constant_0.5"]["point"]["w"], (np.array([1, 0]) + expected) / 2, rtol=1e-5)
    assert float(jnp.linalg.norm(two.params["point"]["w"])) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(last.params["point"]["w"], [0.6, 0.8], atol=1e-4)


def test_a_skipped_step_projects_nothing():
    (first, one), _ = run(Sphere(finite=False), 1)
    np.testing.assert_array_equal(one.params["point"]["w"], first.params["point"]["w"])
    assert int(one.skipped) == 1


@dataclasses.dataclass(frozen=True)
class Players(tiny.Bare):
    """Two groups against each other: the saddle x y, which x descends and y climbs; `wrong` forgets one of them."""

    wrong: bool = False

    def init(self, key):
        return {"x": {"w": jnp.float32(1.0), "held": jnp.float32(5.0)}, "a_y": {"w": jnp.float32(2.0)}}

    def init_state(self):
        return {"games": jnp.zeros((), jnp.int32)}

    def losses(self, params, state, batch, key, *, step, frozen, train):
        x, y = params["x"]["w"], params["a_y"]["w"]
        more = {"state": {"games": state["games"] + 1}, "metrics": {"product": x * y, "step": step}}
        both = {"x": (x * y + 0.0 * params["x"]["held"], more), "a_y": (-x * y, {"state": {"games": jnp.int32(-1)}})}
        return {"x": both["x"]} if self.wrong else both


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_group_follows_its_own_loss(accumulate):
    states, row = run(Players(), 2, accumulate=accumulate)
    x, y = 1.0, 2.0
    for _ in range(2):
        before = x, y
        x, y = x - 0.1 * y, y + 0.1 * x
    found = states[-1].params
    assert float(found["x"]["w"]) == pytest.approx(x) and float(found["a_y"]["w"]) == pytest.approx(y)
    assert int(states[-1].system_state["games"]) == 2 * accumulate  # of the first group that gives a state
    assert row["loss"] == pytest.approx(before[0] * before[1]) == -row["loss/a_y"] == row["product"]
    assert row["grad_norm"] == pytest.approx(before[1]) and row["grad_norm/a_y"] == pytest.approx(before[0])
    assert row["step"] == 1 and set(row) >= {"param_norm", "param_norm/a_y"}
    with pytest.raises(ValueError, match=r"Players.losses has the groups \['x'\], its parameters \['a_y', 'x'\]"):
        run(Players(wrong=True), 1)


def test_only_what_is_trainable_is_trained():
    """No gradient, no optimiser memory, no movement by weight decay for what does not match."""
    trainable = Trainable(("x/w$",))
    adam = {"x": optax.adamw(0.1, weight_decay=0.5), "a_y": optax.adamw(0.1, weight_decay=0.5)}
    step = steps.TrainStep(Players(), adam, (ema.Constant(0.5),), 0, trainable=trainable)
    state = init_state(Players(), Players().init(None), adam, step.averages, trainable)
    assert [leaf.shape for leaf in jax.tree.leaves(state.opt_state["x"][0].mu)] == [()]
    assert not jax.tree.leaves(state.opt_state["a_y"][0].mu)
    new, _ = jax.jit(step)(state, {"image": jnp.zeros((4, 1))})
    assert float(new.params["x"]["held"]) == 5.0 == float(new.ema["constant_0.5"]["x"]["held"])
    assert float(new.params["a_y"]["w"]) == 2.0 and float(new.params["x"]["w"]) < 1
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_patterns_of_a_run():
    full, part = (tiny.prepare(training__trainable=patterns) for patterns in ([], ["middle", "out/bias"]))
    assert full.num_params() - part.num_params() == 32 * 16 + 9 * 16 + 16 + 9 * 16  # level, stem, and the last kernel
    assert part.lowered.as_text().count("stablehlo.convolution") < full.lowered.as_text().count("stablehlo.convolution")
    state, before = part.init(), jax.device_get(full.init().params["network"])
    state, _ = advance(part, state, 0)
    after = jax.device_get(state.params["network"])
    moved = {name for name in after for leaf in after[name] if (after[name][leaf] != before[name][leaf]).any()}
    assert moved == {"middle", "out"} and (after["out"]["kernel"] == before["out"]["kernel"]).all()
    with pytest.raises(ConfigError, match="'midle' matches nothing; paths look like 'network/"):
        tiny.prepare(training__trainable=["midle"])
    with pytest.raises(ConfigError, match="is no regular expression"):
        tiny.prepare(training__trainable=["(middle"])
