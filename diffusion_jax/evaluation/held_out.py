"""What a run says of images that it was not trained on: its loss, and a bound on their likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.inference.generator import mesh_of, place_batch
from diffusion_jax.process import Denoiser, likelihood
from diffusion_jax.process.time_samplers import snap
from diffusion_jax.process.types import PIXELS, DataRange
from diffusion_jax.rng import named
from diffusion_jax.sampling import likelihood as ode_likelihood
from diffusion_jax.systems import Denoises, NoisyClassifier, Sampling, System, request_of, to_float
from diffusion_jax.systems.codecs import range_of_levels
from diffusion_jax.systems.noisy_classifier import QUARTILES, right
from diffusion_jax.training.mesh import replicated

_BATCH = 64  # images whose likelihood is computed at a time


def held_out_loss(
    system: System, params: Any, pipeline: data.Pipeline, *, limit: int = 512, batch_size: int = 64, repeats: int = 4,
    seed: int = 0, frozen: Mapping[str, Any] | None = None,
) -> float:  # fmt: skip
    """Return the training loss, without dropout of any kind, over a pipeline's first images; a mean over all noise levels.

    Args:
      limit: how many images; whole batches of them are used.
      repeats: of the images, each with its own times and noise. Losses of several groups of parameters are added.
      frozen: what the losses read of other runs, {name: {group: tree}}.
    """

    @jax.jit
    def loss(params: Any, frozen: Any, batch: Any, number: int, again: int) -> jax.Array:
        key, step = named(jax.random.key(seed), "held out", number, again), jnp.zeros((), jnp.int32)
        found = system.losses(params, system.init_state(), batch, key, step=step, frozen=frozen, train=False)
        return sum(value for value, _ in found.values())

    batch_size = min(batch_size, limit, len(pipeline))
    values = []
    for number, batch in enumerate(pipeline.one_pass(batch_size, limit=limit)):
        if len(batch["image"]) < batch_size:
            break
        placed = place_batch(data.numeric(batch), params)
        for again in range(repeats):
            values.append(loss(params, dict(frozen or {}), placed, number, again))
    return float(np.mean([np.asarray(value) for value in values]))


def bound_terms(
    system: Denoises, params: Any, pipeline: data.Pipeline, *, limit: int = 64, steps: int | None = None, seed: int = 0
) -> likelihood.BitsPerDim:
    """The variational bound of a pipeline's first images, in order, term by term, in bits per dimension; numpy arrays.

    Each image meets one noise draw per step, with predictions clipped.

    Args:
      system: its own conditioning, such as a low-resolution image at augmentation level 0, is given to the model.
      limit: how many images; each costs T network evaluations.
      steps: T; by default the chain's own, or 100 of a continuous process, whose bound then is a loose one.

    Source: Nichol & Dhariwal 2021, section 3 (arXiv 2102.09672).
    """
    steps = steps or system.process.num_steps or 100
    levels = _levels(system, "a bound in bits per dimension")

    def bound(denoise: Denoiser, x0: jax.Array, key: jax.Array) -> likelihood.BitsPerDim:
        return likelihood.bits_per_dim(denoise, x0, named(key, "bound"), steps, data_range=levels)

    return _of_first(bound, system, params, pipeline, limit, seed)


def terms_table(parts: likelihood.BitsPerDim) -> list[dict[str, Any]]:
    """Means over images, a row for each step from data to noise, then one for the prior; the first columns add up.

    Columns: "step", "t", "bits_per_dim" and its standard error, "x0_mse", "eps_mse".
    """
    terms = np.concatenate([parts.terms, parts.prior[:, None]], axis=1)
    count, steps = parts.terms.shape
    error = terms.std(0, ddof=1) / count**0.5 if count > 1 else np.full(steps + 1, np.nan)
    errors = zip(parts.x0_mse.mean(0), parts.eps_mse.mean(0), strict=True)
    rows = [
        {"step": step, "t": (step + 1) / steps, "bits_per_dim": float(term), "std_error": float(spread),
         "x0_mse": float(x0), "eps_mse": float(eps)}
        for step, (term, spread, (x0, eps)) in enumerate(zip(terms.mean(0)[:-1], error[:-1], errors, strict=True))
    ]  # fmt: skip
    prior = {"step": "prior", "t": 1.0, "bits_per_dim": float(terms[:, -1].mean()), "std_error": float(error[-1])}
    return [*rows, {**prior, "x0_mse": "", "eps_mse": ""}]


def bits_per_dim(
    system: Denoises, params: Any, pipeline: data.Pipeline, *, limit: int = 64, steps: int | None = None, seed: int = 0
) -> dict[str, float]:
    """The mean of `bound_terms`, which has the arguments: "bits_per_dim", and its parts as `summary` has them."""
    return summary(bound_terms(system, params, pipeline, limit=limit, steps=steps, seed=seed))


def summary(parts: likelihood.BitsPerDim) -> dict[str, float]:
    """Means over images: "bits_per_dim", and its parts "prior", "decoder" (the last step) and "steps" (all others)."""
    return {
        "bits_per_dim": float(parts.total.mean()),
        "prior": float(parts.prior.mean()),
        "decoder": float(parts.terms[:, 0].mean()),
        "steps": float(parts.terms[:, 1:].sum(-1).mean()),
    }


def ode_bits_per_dim(
    system: Denoises, params: Any, pipeline: data.Pipeline, *, limit: int = 64, steps: int = 64,
    divergence: str = "hutchinson", seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """Bits per dimension of a pipeline's first images under the probability-flow ODE, float [limit].

    Args:
      system: conditioned as in `bits_per_dim`.
      limit: how many images; each costs 4 network evaluations a step, and as many derivatives of each as there are probes,
        or pixels with divergence "exact".
      steps: of the ODE, by the classical Runge-Kutta rule.
      divergence: "hutchinson" or "exact".

    Source: Song et al. 2021, section 4.3 (arXiv 2011.13456).
    """

    levels = _levels(system, "the likelihood of a flow in bits per dimension")

    def bits(denoise: Denoiser, x0: jax.Array, key: jax.Array) -> jax.Array:
        settings = {"num_steps": steps, "divergence": divergence, "data_range": levels}
        return ode_likelihood.ode_bits_per_dim(denoise, x0, named(key, "ode"), **settings)

    return np.asarray(_of_first(bits, system, params, pipeline, limit, seed))


def _levels(system: Denoises, what: str) -> DataRange:
    """The range of the 256 levels that `what` counts; processes with a bound of their own have none, and need none."""
    return PIXELS if isinstance(system.process, likelihood.HasBound) else range_of_levels(system.codec, what)


def _of_first(
    measure: Callable[[Denoiser, jax.Array, jax.Array], Any],
    system: Denoises,
    params: Any,
    pipeline: data.Pipeline,
    limit: int,
    seed: int,
) -> Any:
    """A measure (denoiser, encoded images, key) of the first images, each with its own conditioning, unguided.

    The measure's arrays [B, ...], with the batches joined, as numpy.
    """

    mesh = mesh_of(params)

    def measured(params: Any, batch: Any, key: jax.Array) -> Any:
        plain = Sampling(guidance=1.0, threshold="none", aug_level=0.0)
        x0 = system.codec.encode({}, batch, named(key, "encode"))
        denoise = system.denoiser(params, key, request_of(system, batch), jnp.arange(len(x0)), plain)
        return measure(denoise, x0, key)

    measured = jax.jit(measured, out_shardings=None if mesh is None else replicated(mesh))
    found = []
    for number, batch in enumerate(pipeline.one_pass(min(limit, _BATCH), limit=limit)):
        key = jax.random.key(seed) if number == 0 else named(jax.random.key(seed), "batch", number)
        found.append(jax.tree.map(np.asarray, measured(params, place_batch(data.numeric(batch), params), key)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def accuracy_by_time(
    system: NoisyClassifier, params: Any, pipeline: data.Pipeline, *, limit: int = 1000, batch_size: int = 64,
    bins: int = QUARTILES, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Top-1 and top-5 accuracy over a pipeline's first images, each noised once in every bin of t.

    Args:
      limit: how many images.
      bins: of equal width over (0, 1]; times are uniform within one.

    Returns:
      "accuracy_top1" and "accuracy_top5" over all, and for each bin such as "accuracy_top1_t_0_to_0.25".
    """
    width = 1 / bins

    mesh = mesh_of(params)

    def look(params: Any, batch: Any, number: int) -> jax.Array:
        x0, count = to_float(batch["image"]), len(batch["image"])
        found = []
        for place in range(bins):
            key = named(jax.random.key(seed), "accuracy", place, number)
            t = snap(system.process, width * (place + 1 - jax.random.uniform(named(key, "times"), (count,))))
            x_t = system.process.diffuse(x0, t, jax.random.normal(named(key, "noise"), x0.shape))
            found.append(right(system.logits(params, x_t, t), jnp.asarray(batch["label"])))
        return jnp.stack(found)  # [bins, 2, B]

    look = jax.jit(look, out_shardings=None if mesh is None else replicated(mesh))
    parts = [
        np.asarray(look(params, place_batch({name: batch[name] for name in ("image", "label")}, params), number))
        for number, batch in enumerate(pipeline.one_pass(min(batch_size, limit), limit=limit))
    ]
    means = np.concatenate(parts, axis=-1).mean(-1)
    rows: dict[str, float] = {}
    for kind, name in enumerate(("accuracy_top1", "accuracy_top5")):
        rows[name] = float(means[:, kind].mean())
        rows |= {f"{name}_t_{place * width:g}_to_{(place + 1) * width:g}": float(means[place, kind]) for place in range(bins)}
    return rows
