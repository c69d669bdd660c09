"""The training step: donated, jitted once, with metrics that stay on the device until they are logged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.rng import named
from diffusion_jax.training import ema as emas
from diffusion_jax.training.state import TrainState

BIN_EDGES = np.linspace(-10.0, 10.0, 9)
"""Edges of the log-SNR bins in which losses are reported; the outermost bins reach to infinity."""

NUM_BINS = len(BIN_EDGES) + 1


def zero_metrics() -> dict[str, jax.Array]:
    """Sums since the last log."""
    return {
        "steps": jnp.zeros((), jnp.int32),
        "loss": jnp.zeros(()),
        "grad_norm": jnp.zeros(()),
        "param_norm": jnp.zeros(()),
        "bin_loss": jnp.zeros(NUM_BINS),
        "bin_count": jnp.zeros(NUM_BINS),
    }


def _microbatches(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """[B, ...] -> [count, B / count, ...]; every device keeps the same share of every microbatch."""
    split = lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)  # noqa: E731
    return jax.tree.map(split, dict(batch))


def _gradient(system: Any, params: Any, state: Any, batch: Any, key: jax.Array, accumulate: int, frozen: Any) -> tuple:
    """(loss, system state, {"per_example", "log_snr"}, gradient), averaged over microbatches."""
    loss_of = functools.partial(system.loss, frozen=frozen) if frozen else system.loss
    grad = jax.value_and_grad(loss_of, has_aux=True)
    if accumulate == 1:
        (loss, (state, aux)), gradient = grad(params, state, batch, key)
        return loss, state, aux, gradient

    def body(carry: Any, inputs: Any) -> Any:
        state, total_loss, total = carry
        number, part = inputs
        (loss, (state, aux)), gradient = grad(params, state, part, named(key, "microbatch", number))
        return (state, total_loss + loss, jax.tree.map(jnp.add, total, gradient)), aux

    zeros = jax.tree.map(jnp.zeros_like, params)
    parts = (jnp.arange(accumulate), _microbatches(batch, accumulate))
    # On a CPU gradients of convolutions inside a scan are many times slower than unrolled ones.
    unroll = jax.default_backend() == "cpu"
    carry = (state, jnp.zeros(()), zeros)
    (state, loss, gradient), aux = jax.lax.scan(body, carry, parts, unroll=accumulate if unroll else 1)
    aux = jax.tree.map(lambda x: x.reshape(-1), aux)
    return loss / accumulate, state, aux, jax.tree.map(lambda g: g / accumulate, gradient)


def make_step(
    system: Any, optimizer: optax.GradientTransformation, averages: tuple[emas.Ema, ...], seed: int, accumulate: int = 1
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Any]]:
    """(state, metric sums, global batch) -> (state, metric sums); to be jitted with the first two donated.

    The key of a step is a function of (seed, step): the same numbers on any number of devices. A step whose loss or
    gradient is not finite changes nothing but the counts. A system that offers `project` has its parameters projected
    after each update, before they are averaged. A system that offers `advance` has its state advanced once a step,
    before the gradient.
    """
    project = getattr(system, "project", lambda params: params)
    advance = getattr(system, "advance", lambda params, state: state)

    def step(state: TrainState, metrics: dict[str, jax.Array], batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = named(jax.random.key(seed), "step", state.step)
        began = advance(state.params, state.system_state)
        loss, system_state, aux, gradient = _gradient(system, state.params, began, batch, key, accumulate, state.frozen)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = project(optax.apply_updates(state.params, updates))
        taken = state.step + 1 - state.skipped  # averages count the steps that were taken
        ema = {a.label: emas.update(a, state.ema[a.label], params, taken) for a in averages}
        new = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            ema=keep(ema, state.ema),
            opt_state=keep(opt_state, state.opt_state),
            system_state=keep(system_state, state.system_state),
            skipped=state.skipped + ~finite,
            frozen=state.frozen,
        )
        return new, _accumulate(metrics, loss, norm, optax.tree.norm(new.params), aux, finite)

    return step


def _accumulate(
    metrics: dict[str, jax.Array], loss: jax.Array, norm: jax.Array, param_norm: jax.Array, aux: Any, finite: jax.Array
) -> dict[str, jax.Array]:
    add = lambda total, value: total + jnp.where(finite, value, 0.0)  # noqa: E731
    place = jnp.searchsorted(jnp.asarray(BIN_EDGES, jnp.float32), aux["log_snr"])
    one_hot = jax.nn.one_hot(place, NUM_BINS)
    losses = jnp.where(jnp.isfinite(aux["per_example"]), aux["per_example"], 0.0)
    return {
        "steps": metrics["steps"] + finite,
        "loss": add(metrics["loss"], loss),
        "grad_norm": add(metrics["grad_norm"], norm),
        "param_norm": jnp.where(finite, param_norm, metrics["param_norm"]),
        "bin_loss": add(metrics["bin_loss"], losses @ one_hot),
        "bin_count": add(metrics["bin_count"], one_hot.sum(0)),
    }


def summarize(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means since the last log, of sums brought to the host: loss, norms, and loss by log-SNR bin."""
    steps = max(int(metrics["steps"]), 1)
    row = {
        "loss": float(metrics["loss"]) / steps,
        "grad_norm": float(metrics["grad_norm"]) / steps,
        "param_norm": float(metrics["param_norm"]),
    }
    edges = ["-inf", *(f"{edge:g}" for edge in BIN_EDGES), "inf"]
    for number, count in enumerate(metrics["bin_count"]):
        if count:
            name = f"loss_by_log_snr/{edges[number]}_to_{edges[number + 1]}"
            row[name] = float(metrics["bin_loss"][number] / count)
    return row
