"""The step: donated, compiled once, microbatches, steps that are skipped, sums on the device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training import step as steps
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
        assert all(np.isfinite(value).all() for value in metrics.values())
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
            found.append(float(metrics["loss"]))
        return found

    first = losses(1)
    assert len(set(first)) == 3 and losses(1) == first and set(losses(2)).isdisjoint(first)


def test_sums_on_the_device():
    """Against numpy, with levels on and beyond the edges."""
    rng = np.random.default_rng(0)
    log_snr = np.array([-40.0, -10.0, -9.9, 0.0, 0.1, 9.9, 40.0, np.inf], np.float32)
    totals, expected_sum, expected_count = steps.zero_metrics(), np.zeros(steps.NUM_BINS), np.zeros(steps.NUM_BINS)
    for finite in (True, False, True):
        losses = rng.random(8, np.float32)
        aux = {"per_example": jnp.asarray(losses), "log_snr": jnp.asarray(log_snr)}
        norm = jnp.float32(2.0)
        totals = steps._accumulate(totals, jnp.mean(losses), norm, 3 * norm, aux, jnp.asarray(finite))
        if finite:
            place = np.digitize(log_snr, steps.BIN_EDGES, right=True)
            np.add.at(expected_sum, place, losses)
            np.add.at(expected_count, place, 1)
    np.testing.assert_allclose(totals["bin_loss"], expected_sum, rtol=1e-6)
    np.testing.assert_array_equal(totals["bin_count"], expected_count)
    row = steps.summarize(jax.device_get(totals))
    assert row["grad_norm"] == 2 and row["param_norm"] == 6 and totals["steps"] == 2
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
