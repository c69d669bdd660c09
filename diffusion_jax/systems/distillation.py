"""Progressive distillation: a student whose one step does what two of its teacher's do; again and again, to one step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, expand, losses, weightings
from diffusion_jax.process.ode import ddim_step
from diffusion_jax.process.types import Data, PerExample
from diffusion_jax.registry import build, register
from diffusion_jax.rng import named
from diffusion_jax.systems.base import Batch
from diffusion_jax.systems.images import to_float
from diffusion_jax.systems.teachers import Taught

_LEAST_SCALE = 0.1
"""Of the network's error to that of x0, at t = 1: v and x0 have 1 or more, predictions of the noise alpha / sigma."""


def two_step_target(process: Process, x_t: Data, x_u: Data, t: PerExample, u: PerExample) -> jax.Array:
    """The x0 with which one DDIM step takes x_t, at times t, to x_u, at earlier times u: all [B, ...] or [B].

    (x_u - r x_t) / (alpha_u - r alpha_t) with r = sigma_u / sigma_t; where u is 0 it is x_u itself.

    Source: Salimans & Ho 2022, appendix G (arXiv 2202.00512).
    """
    (alpha_t, sigma_t), (alpha_u, sigma_u) = process.alpha_sigma(t), process.alpha_sigma(u)
    ratio = sigma_u / sigma_t
    return (x_u - expand(ratio, x_t) * x_t) / expand(alpha_u - ratio * alpha_t, x_t)


@register("system", "progressive_distillation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Taught):
    """One stage: a student of N steps learns from a teacher of 2N.

    At t = i / N the teacher takes two DDIM steps of half the size; the student, which starts as a copy of the teacher, is
    to predict the x0 that gets there in one. A student is sampled with the solver "ddim", the grid "trailing" and N
    steps, and is the next stage's teacher; `training.stages.halve` goes through all of them.

    Args:
      num_steps: N.
      weighting: on the squared error of x0: "truncated_snr", max(SNR, 1), or for v "simple", SNR + 1. Both see zero SNR.
      (more): the fields of `Taught`; `times` and `vlb_weight` are of no use here.

    Raises:
      ConfigError: a network that predicts the noise; the weighting "vlb"; a chain whose steps 2N does not divide.

    Source: Salimans & Ho 2022, algorithm 2 and section 4 (arXiv 2202.00512).
    """

    num_steps: int
    weighting: Any = "truncated_snr"

    name = "progressive_distillation"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"system {self.name!r}: num_steps must be at least 1, got {self.num_steps}")
        self._refuse_fields("times", "vlb_weight")
        super().__post_init__()
        if build("weighting", self.weighting) is weightings.bound_only:
            raise ConfigError(
                f"system {self.name!r} has no variational bound, so the weighting 'vlb' would train nothing: use "
                "'truncated_snr' or 'simple'"
            )
        if self.process.prediction.x0_error_scale(*self.process.alpha_sigma(1.0)) < _LEAST_SCALE:
            raise ConfigError(
                f"system {self.name!r}: the prediction {self.process.prediction.name!r} becomes x0 by dividing by alpha, which "
                "vanishes where few-step samplers begin, so that its errors there are all of the image; use 'v' or 'x0'"
            )
        steps = self.process.num_steps
        if steps is not None and steps % (2 * self.num_steps):
            raise ConfigError(
                f"system {self.name!r}: a teacher of {2 * self.num_steps} steps does not stand on the {steps} steps of the "
                "chain it was trained on; use a divisor, or a continuous schedule such as 'cosine_continuous'"
            )

    def init_state(self) -> dict:
        """Nothing: times are drawn evenly."""
        return {}

    def loss(
        self, params: Any, state: Any, batch: Batch, key: jax.Array, *, train: bool = True, frozen: Any = None
    ) -> tuple[jax.Array, Any]:
        """The error of the student's x0 against the one that two steps of the teacher imply.

        Args:
          batch: "image" uint8 [B, H, W, C], and "label" int32 [B] where there are classes.
          frozen: {"teacher": parameters}. Without them (in evaluation) the error is against the data.

        Returns:
          (loss, (state, {"per_example": unweighted errors in the network's space [B], "log_snr": [B]})).
        """
        x0, process = to_float(batch["image"]), self.process
        cond = self._training_cond(x0, batch, key, train)
        place = jax.random.randint(named(key, "times"), x0.shape[:1], 1, self.num_steps + 1)
        t, eps = place / self.num_steps, jax.random.normal(named(key, "noise"), x0.shape)
        x_t = process.diffuse(x0, t, eps)
        wanted = jax.lax.stop_gradient(self.target(frozen, cond, x_t, place)) if frozen else x0

        x, level = process.network_inputs(x_t, t)
        kwargs = {"train": train, "rngs": {"dropout": named(key, "dropout")}}
        prediction, _ = process.split(self.network.apply(params, x, level, cond, **kwargs).astype(jnp.float32), x_t)
        alpha, sigma = (expand(value, x_t) for value in process.alpha_sigma(t))
        # In the network's own space, where errors near the data are not multiplied by a large SNR.
        error = losses.DISTANCES[self.distance](process.target(wanted, (x_t - alpha * wanted) / sigma, t) - prediction)
        per_example = error.reshape(x0.shape[0], -1).mean(-1)
        weight = weightings.in_target_space(build("weighting", self.weighting), process, t)
        return (weight * per_example).mean(), (state, {"per_example": per_example, "log_snr": process.log_snr(t)})

    def target(self, frozen: Any, cond: dict[str, jax.Array], x_t: Data, place: jax.Array) -> jax.Array:
        """The x0 that takes the student from t = place / N to (place - 1) / N, where two steps of the teacher lead.

        Args:
          x_t: [B, H, W, C].
          place: int [B], in 1..N.
        """
        denoise = self.teacher_denoiser(frozen, cond)
        t, s, u = (jnp.maximum(place - back, 0.0) / self.num_steps for back in (0.0, 0.5, 1.0))
        x_u = ddim_step(denoise, ddim_step(denoise, x_t, t, s), s, u)
        return two_step_target(self.process, x_t, x_u, t, u)
