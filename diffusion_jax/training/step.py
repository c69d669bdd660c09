"""The training step: donated, jitted once, with metrics that stay on the device until they are logged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.lazy import lazy
from diffusion_jax.rng import named
from diffusion_jax.systems import Projects, System
from diffusion_jax.training import ema as emas
from diffusion_jax.training.state import Optimizers, Trainable, TrainState

optax = lazy("optax")

BIN_EDGES = np.linspace(-10.0, 10.0, 9)
"""Edges of the log-SNR bins in which losses are reported; the outermost bins reach to infinity."""

NUM_BINS = len(BIN_EDGES) + 1

Metrics = dict[str, Any]
"""Sums over steps: "steps" int32, "sums" and "last" {name: float32 scalar}, "bin_loss" and "bin_count" float32 [NUM_BINS]."""


def by_group(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Name the values of groups as rows of metrics have them: the first is `what` itself, the others "what/GROUP".

    >>> by_group("loss", {"network": 1.0, "discriminator": 2.0})
    {'loss': 1.0, 'loss/discriminator': 2.0}
    """
    return {f"{what}/{group}" if number else what: value for number, (group, value) in enumerate(values.items())}


def losses_of(system: System, params: Any, *arguments: Any, **keywords: Any) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Return a system's ({group: loss}, aux) with the groups in the system's order and their aux joined, the first first.

    Raises:
      ValueError: losses of other groups than the parameters have: a mistake in the system.
    """
    found = system.losses(params, *arguments, **keywords)
    if set(found) != set(params):
        raise ValueError(f"{type(system).__name__}.losses has the groups {sorted(found)}, its parameters {sorted(params)}")
    joined: dict[str, Any] = {}
    for _, aux in found.values():
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in aux.get("metrics", {}).items()}
        joined = {**aux, **joined, "metrics": {**metrics, **joined.get("metrics", {})}}
    return {group: value for group, (value, _) in found.items()}, joined


class _Learner:
    """The losses of a batch, each differentiated for its own group alone.

    It returns sums over a batch, which microbatches add up, and the system's new state. As it is traced it finds the `order` of
    the groups, which JAX forgets: it sorts dicts.
    """

    def __init__(self, system: System, trainable: Trainable, params: Any, trained: Any, **more: Any) -> None:
        self._system, self._trainable, self._params, self._trained, self._more = system, trainable, params, trained, more
        self.order: list[str] = []

    def learn(self, state: Any, batch: Any, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Return ({"gradient": {group: tree}, "loss": {group: scalar}, "metrics": {name: scalar}, bins}, system state)."""

        def loss(own: Any, group: str) -> tuple[jax.Array, Any]:
            params = self._trainable.merge({**self._trained, group: own}, self._params)
            values, aux = losses_of(self._system, params, state, batch, key, train=True, **self._more)
            self.order = list(values)
            return values[group], (values, aux)

        gradient, found = {}, None
        for group in self._params:  # what the passes have in common, or compute in vain, the compiler drops
            (_, again), gradient[group] = jax.value_and_grad(loss, has_aux=True)(self._trained[group], group)
            found = found or again
        values, aux = found
        return {"gradient": gradient, "loss": values, "metrics": aux["metrics"], **_bins(aux)}, aux.get("state", state)

    def learn_in_parts(self, count: int, state: Any, batch: Any, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Return the same of a batch in `count` microbatches, through which the state is handed on; gradients are means."""
        if count == 1:
            return self.learn(state, batch, key)

        def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
            (total, state), (number, rows) = carry, inputs
            sums, state = self.learn(state, rows, named(key, "microbatch", number))
            return (jax.tree.map(jnp.add, total, sums.pop("gradient")), state), sums

        zeros = {group: jax.tree.map(jnp.zeros_like, tree) for group, tree in self._trained.items()}
        parts = (jnp.arange(count), _microbatches(batch, count))
        # On a CPU gradients of convolutions inside a scan are many times slower than unrolled ones.
        unroll = count if jax.default_backend() == "cpu" else 1
        (gradient, state), parts = jax.lax.scan(body, (zeros, state), parts, unroll=unroll)
        sums = {"gradient": gradient, **jax.tree.map(lambda x: x.sum(0), parts)}
        means = {name: jax.tree.map(lambda x: x / count, sums[name]) for name in ("gradient", "loss", "metrics")}
        return {**sums, **means}, state


def _bins(aux: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The losses of examples by log-SNR, where a system gives them: sums and counts, [NUM_BINS] each."""
    if "per_example" not in aux or "log_snr" not in aux:
        return {"bin_loss": jnp.zeros(NUM_BINS), "bin_count": jnp.zeros(NUM_BINS)}
    place = jnp.searchsorted(jnp.asarray(BIN_EDGES, jnp.float32), aux["log_snr"])
    one_hot = jax.nn.one_hot(place, NUM_BINS)
    losses = jnp.where(jnp.isfinite(aux["per_example"]), aux["per_example"], 0.0)
    return {"bin_loss": losses @ one_hot, "bin_count": one_hot.sum(0)}


def _microbatches(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """[B, ...] -> [count, B / count, ...]; every device keeps the same share of every microbatch."""
    split = lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)  # noqa: E731
    return jax.tree.map(split, dict(batch))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """(state, global batch) -> (state, metrics of the step), to be jitted.

    The key of a step is a function of (seed, step): the same numbers on any number of devices. A step whose losses or
    gradients are not finite changes nothing but the counts. The parameters of a system that projects are projected after each
    update, before they are averaged. What is not trainable stays as it is, whatever is projected.

    Args:
      optimizers, rates: {group: gradient transformation} and {group: learning rate by the number of updates}, for the log.
      accumulate: microbatches a step.
    """

    system: System
    optimizers: Optimizers
    averages: tuple[emas.Ema, ...]
    seed: int
    accumulate: int = 1
    trainable: Trainable = Trainable()
    rates: Mapping[str, optax.Schedule] = dataclasses.field(default_factory=dict)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """Return the state after a step on a batch, and what is logged of it."""
        trained, key = self.trainable.pick(state.params), named(jax.random.key(self.seed), "step", state.step)
        learner = _Learner(self.system, self.trainable, state.params, trained, step=state.step, frozen=state.frozen)
        sums, system_state = learner.learn_in_parts(self.accumulate, state.system_state, batch, key)
        groups = learner.order
        norms = {group: jnp.asarray(optax.tree.norm(sums["gradient"][group])) for group in groups}
        finite = jnp.isfinite(jnp.stack([*sums["loss"].values(), *norms.values()])).all()

        new = {**self._updated(state, trained, sums["gradient"]), "system_state": system_state}
        old = {name: getattr(state, name) for name in new}
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        done = dataclasses.replace(state, step=state.step + 1, skipped=state.skipped + ~finite, **kept)

        last = by_group("param_norm", {group: optax.tree.norm(done.params[group]) for group in groups})
        if self.rates:
            updates = state.step - state.skipped
            last |= by_group("learning_rate", {group: self.rates[group](updates) for group in groups})
        losses = {group: sums["loss"][group] for group in groups}
        means = {**sums["metrics"], **by_group("loss", losses), **by_group("grad_norm", norms)}
        return done, _metrics(finite, means, last, sums)

    def _updated(self, state: TrainState, trained: Any, gradient: Any) -> dict[str, Any]:
        """The fields of the state that an update changes: each group's optimiser, then the projection, then the averages."""
        new, opt_state = {}, {}
        for group, tree in gradient.items():
            updates, opt_state[group] = self.optimizers[group].update(tree, state.opt_state[group], trained[group])
            new[group] = optax.apply_updates(trained[group], updates)
        if isinstance(self.system, Projects):
            new = self.trainable.pick(self.system.project(self.trainable.merge(new, state.params)))
        ema, taken = {}, state.step + 1 - state.skipped  # averages count the steps that were taken
        for average in self.averages:
            old = state.ema[average.label]
            ema[average.label] = self.trainable.merge(emas.update(average, self.trainable.pick(old), new, taken), old)
        return {"params": self.trainable.merge(new, state.params), "ema": ema, "opt_state": opt_state}


def _metrics(finite: jax.Array, means: Mapping[str, Any], last: Mapping[str, Any], sums: Mapping[str, Any]) -> Metrics:
    """The metrics of one step; of a step that was not finite they are zeros, and count nothing."""
    found = {"sums": dict(means), "last": dict(last), "bin_loss": sums["bin_loss"], "bin_count": sums["bin_count"]}
    found = jax.tree.map(lambda x: jnp.where(finite, x, 0.0).astype(jnp.float32), found)
    return {"steps": finite.astype(jnp.int32), **found}


def add_metrics(total: Metrics, step: Metrics) -> Metrics:
    """Return the sums with one more step's; of what is "last" the step's own, unless it was not finite."""
    last = jax.tree.map(lambda a, b: jnp.where(step["steps"] > 0, b, a), total["last"], step["last"])
    return {**jax.tree.map(jnp.add, total, step), "last": last}


def summarize(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return a row of means since the last log out of sums brought to the host: losses, norms, and loss by log-SNR bin."""
    steps = max(int(metrics["steps"]), 1)
    row = {name: float(value) / steps for name, value in metrics["sums"].items()}
    row |= {name: float(value) for name, value in metrics["last"].items()}
    edges = ["-inf", *(f"{edge:g}" for edge in BIN_EDGES), "inf"]
    for number, count in enumerate(metrics["bin_count"]):
        if count:
            name = f"loss_by_log_snr/{edges[number]}_to_{edges[number + 1]}"
            row[name] = float(metrics["bin_loss"][number] / count)
    return row
