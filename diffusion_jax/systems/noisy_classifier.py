"""A classifier of noisy images: what classifier guidance follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import Pipeline
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.process.types import Data, PerExample, expand
from diffusion_jax.registry import build, register
from diffusion_jax.rng import named
from diffusion_jax.spec import Spec
from diffusion_jax.systems.base import CHECKED, Batch, Losses, Params
from diffusion_jax.systems.codecs import check_pixels, to_float
from diffusion_jax.systems.conditioners import Labels
from diffusion_jax.systems.parts import build_network, build_process

QUARTILES = 4
_FORGET = 0.98  # a batch: accuracies that training logs are of some fifty batches


@register("system", "noisy_classifier")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyClassifier:
    """log p(label | x_t), trained by cross-entropy on images that a process has noised.

    It is trained by the same program as what draws images, and evaluated by its accuracy in each quarter of t; it draws
    nothing itself, but `sample --classifier=WORKDIR` guides a model with it.

    Args:
      spec: of the data; programs take it from the recipe's `data`.
      process: a `Process` or its fields, at least {"schedule": ...}: how images are noised. The model to be guided may
        have another schedule: times are matched by their log-SNR.
      network: "unet_classifier", a preset of it such as "adm_classifier64", or any network of (x_t, noise level) -> logits.
      num_classes: at least 2.
      times: the time sampler of training.

    Raises:
      ConfigError: unknown names or fields, parts that do not fit together, fewer than two classes.

    Source: Dhariwal & Nichol 2021, section 4 and appendix I (arXiv 2105.05233).
    """

    spec: Spec
    process: Any
    network: Any
    num_classes: int
    times: Any = "uniform"

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"system 'noisy_classifier': num_classes must be at least 2, got {self.num_classes}")
        object.__setattr__(self, "process", build_process(self.process))
        network = build_network(self.network, self.spec, (), num_classes=self.num_classes)
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "times", build("times", self.times))

    @property
    def labels(self) -> Labels:
        """Return the conditioner of the classes, without a null label."""
        return Labels(num_classes=self.num_classes, drop=0.0)

    def init(self, key: jax.Array) -> Params:
        """Make fresh parameters: {"network": a nested dict of arrays}."""
        return {"network": self.network.init(key)}

    def init_state(self) -> Any:
        """Make the time sampler's history, and sums of what was right in each quarter of t."""
        return {
            "times": self.times.init_state(self.process),
            "right": jnp.zeros((2, QUARTILES)),  # top-1, top-5
            "seen": jnp.zeros(QUARTILES),
        }

    # Training ---------------------------------------------------------------------------------------------------------

    def logits(self, params: Params, x_t: Data, t: PerExample, **kwargs: Any) -> jax.Array:
        """Compute the logits [B, classes], float32, of images [B, H, W, C] at times [B] of the classifier's own process."""
        x, level = self.process.network_inputs(x_t, t)
        return self.network.apply(params["network"], x, level, {}, **kwargs).astype(jnp.float32)

    def losses(self, params: Params, state: Any, batch: Batch, key: jax.Array, *, step, frozen, train) -> Losses:
        """Compute the cross-entropy of a batch, each image noised to a time of its own; see `System.losses`.

        Args:
          batch: "image" uint8 [B, H, W, C] and "label" int32 [B].
        """
        self.labels.check_batch(batch)
        x0, label = to_float(batch["image"]), jnp.asarray(batch["label"])
        t, weight = self.times.sample(self.process, named(key, "times"), x0.shape[0], state["times"])
        x_t = self.process.diffuse(x0, t, jax.random.normal(named(key, "noise"), x0.shape))
        logits = self.logits(params, x_t, t, train=train, rngs={"dropout": named(key, "dropout")})
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=-1)[:, 0]
        quarter = jax.nn.one_hot(quarter_of(t), QUARTILES)
        state = {
            "times": self.times.update(self.process, state["times"], t, losses),
            "right": _FORGET * state["right"] + jax.lax.stop_gradient(right(logits, label)) @ quarter,
            "seen": _FORGET * state["seen"] + quarter.sum(0),
        }
        aux = {"state": state, "per_example": losses, "log_snr": self.process.log_snr(t)}
        return {"network": ((weight * losses).mean(), aux)}

    def report(self, state: Any) -> dict[str, float]:
        """Return the accuracy of the last batches in each quarter of t, top-1 and top-5."""
        sums, seen = np.asarray(state["right"]), np.asarray(state["seen"])
        return {
            f"accuracy_top{k}/t_{number / QUARTILES:g}_to_{(number + 1) / QUARTILES:g}": float(row[number] / seen[number])
            for k, row in zip((1, 5), sums, strict=True)
            for number in range(QUARTILES)
            if seen[number] > 0
        }

    # Guidance ---------------------------------------------------------------------------------------------------------

    def log_prob(self, params: Params, label: jax.Array, process: Process) -> Callable[[Data, PerExample], PerExample]:
        """Bind (x_t, t) -> log p(label | x_t) [B], for the x_t and the times of another process.

        Where the schedules differ, the time is taken at which the classifier's process has the same log-SNR, and x_t is
        brought to that process's scale; noise beyond what the classifier has seen counts as its most, or its least.

        Args:
          label: int [B].
        """
        label, same = jnp.asarray(label, jnp.int32), same_noise(self.process, process)

        def function(x_t: Data, t: PerExample) -> PerExample:
            if not same:
                own = self._time_of(process.log_snr(t))
                ours, theirs = (jnp.hypot(*each.alpha_sigma(at)) for each, at in ((self.process, own), (process, t)))
                x_t, t = expand(ours / theirs, x_t) * x_t, own
            return jnp.take_along_axis(jax.nn.log_softmax(self.logits(params, x_t, t)), label[:, None], axis=-1)[:, 0]

        return function

    def _time_of(self, log_snr: jax.Array) -> jax.Array:
        steps = self.process.num_steps
        return jnp.clip(self.process.schedule.inverse(log_snr), 1 / steps if steps else 1e-4, 1.0)

    def check(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` if the pipeline's images or classes are not the system's."""
        if pipeline.spec != self.spec:
            raise ConfigError(
                f"the data are {pipeline.spec}, the system's {self.spec}: image_size and channels of both must agree"
            )
        self.labels.check_data(pipeline)
        first = next(pipeline.one_pass(min(len(pipeline), CHECKED)))
        self.labels.check_batch(first)
        check_pixels(first["image"])


def right(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Return whether the label is the first, and whether it is among the first five: float32 [2, B]."""
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    above = (logits > own).sum(-1)
    return jnp.stack([above < 1, above < 5]).astype(jnp.float32)


def quarter_of(t: jax.Array) -> jax.Array:
    """Return which quarter of (0, 1] times lie in, int 0..3."""
    return jnp.clip(jnp.ceil(t * QUARTILES - 1e-4).astype(jnp.int32) - 1, 0, QUARTILES - 1)


def same_noise(first: Process, second: Process) -> bool:
    """Return whether two processes have the same x_t at the same t."""
    times = np.linspace(0.05, 1, 20)
    one, other = first.schedule, second.schedule
    with np.errstate(invalid="ignore"):
        close = np.allclose(one.log_snr(times), other.log_snr(times), atol=1e-3)
    return one.family == other.family and first.num_steps == second.num_steps and bool(close)
