"""Progressive distillation: a student whose one step does what two of its teacher's do; again and again, to one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process import Denoiser, Process, expand, losses, weightings
from diffusion_jax.process.types import Data, PerExample
from diffusion_jax.registry import build, register
from diffusion_jax.rng import named
from diffusion_jax.sampling.solvers.runge_kutta import ddim_step
from diffusion_jax.systems.denoising import Example, Parts
from diffusion_jax.systems.teachers import TEACHER, Distillation

_LEAST_SCALE = 0.1
"""Of the network's error to that of x0, at t = 1: v and x0 have 1 or more, predictions of the noise alpha / sigma."""


def two_step_target(process: Process, x_t: Data, x_u: Data, t: PerExample, u: PerExample) -> jax.Array:
    """Compute the x0 with which one DDIM step takes x_t, at times t, to x_u, at earlier times u: all [B, ...] or [B].

    (x_u - r x_t) / (alpha_u - r alpha_t) with r = sigma_u / sigma_t; where u is 0 it is x_u itself.

    Source: Salimans & Ho 2022, appendix G (arXiv 2202.00512).
    """
    (alpha_t, sigma_t), (alpha_u, sigma_u) = process.alpha_sigma(t), process.alpha_sigma(u)
    ratio = sigma_u / sigma_t
    return (x_u - expand(ratio, x_t) * x_t) / expand(alpha_u - ratio * alpha_t, x_t)


@register("objective", "progressive_distillation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Distillation):
    """One stage: a student of N steps learns from a teacher of 2N.

    At t = i / N the teacher takes two DDIM steps of half the size; the student, which starts as a copy of the teacher, is
    to predict the x0 that gets there in one. A student is sampled with the solver "ddim", the grid "trailing" and N
    steps, and is the next stage's teacher; `training.stages.halve` goes through all of them.

    Args:
      num_steps: N.
      weighting: on the squared error of x0: "truncated_snr", max(SNR, 1), or for v "simple", SNR + 1. Both see zero SNR.
      distance: "l2", "l1" or "l2_sum"; see `losses.DISTANCES`.
      (more): the fields of `Distillation`.

    Raises:
      ConfigError: a network that predicts the noise; the weighting "vlb"; a chain whose steps 2N does not divide.

    Source: Salimans & Ho 2022, algorithm 2 and section 4 (arXiv 2202.00512).
    """

    num_steps: int
    weighting: Any = "truncated_snr"
    distance: str = "l2"

    name = "progressive_distillation"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"objective {self.name!r}: num_steps must be at least 1, got {self.num_steps}")
        check_choice(f"objective {self.name!r}: distance", self.distance, losses.DISTANCES)
        if build("weighting", self.weighting) is weightings.bound_only:
            raise ConfigError(
                f"objective {self.name!r} has no variational bound, so the weighting 'vlb' would train nothing: use "
                "'truncated_snr' or 'simple'"
            )

    def check(self, system: Parts) -> None:
        """Raise a `ConfigError` for a process that few steps cannot serve."""
        super().check(system)
        prediction, steps = system.process.prediction, system.process.num_steps
        if prediction.x0_error_scale(*system.process.alpha_sigma(1.0)) < _LEAST_SCALE:
            raise ConfigError(
                f"objective {self.name!r}: the prediction {prediction.name!r} becomes x0 by dividing by alpha, which "
                "vanishes where few-step samplers begin, so that its errors there are all of the image; use 'v' or 'x0'"
            )
        if steps is not None and steps % (2 * self.num_steps):
            raise ConfigError(
                f"objective {self.name!r}: a teacher of {2 * self.num_steps} steps does not stand on the {steps} steps of the "
                "chain it was trained on; use a divisor, or a continuous schedule such as 'cosine_continuous'"
            )

    def loss(
        self, system: Parts, params: Any, state: Any, example: Example, key: jax.Array, *,
        step: jax.Array, frozen: Mapping[str, Any], train: bool,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        """Compute the error of the student's x0 against the one that two steps of the teacher imply.

        Without a teacher (in evaluation) the error is against the data. "per_example" is unweighted, in the network's space.
        """
        x0, process = example.x0, system.process
        place = jax.random.randint(named(key, "times"), x0.shape[:1], 1, self.num_steps + 1)
        t, eps = place / self.num_steps, jax.random.normal(named(key, "noise"), x0.shape)
        x_t = process.diffuse(x0, t, eps)
        aim = x0
        if TEACHER in frozen:
            aim = jax.lax.stop_gradient(self.target(self.teacher_denoiser(system, frozen, example), x_t, place))

        x, level = process.network_inputs(x_t, t)
        kwargs = {"train": train, "rngs": {"dropout": named(key, "dropout")}}
        output = system.network.apply(params, x, level, example.cond, **kwargs).astype(jnp.float32)
        prediction, _ = process.split(output, x_t)
        alpha, sigma = (expand(value, x_t) for value in process.alpha_sigma(t))
        # In the network's own space, where errors near the data are not multiplied by a large SNR.
        error = losses.DISTANCES[self.distance](process.target(aim, (x_t - alpha * aim) / sigma, t) - prediction)
        per_example = error.reshape(x0.shape[0], -1).mean(-1)
        weight = weightings.in_target_space(build("weighting", self.weighting), process, t)
        return (weight * per_example).mean(), {"per_example": per_example, "log_snr": process.log_snr(t)}

    def target(self, denoise: Denoiser, x_t: Data, place: jax.Array) -> jax.Array:
        """Compute the x0 that takes the student from t = place / N to (place - 1) / N, where two steps of a teacher lead.

        Args:
          denoise: the teacher.
          x_t: [B, H, W, C].
          place: int [B], in 1..N.
        """
        t, s, u = (jnp.maximum(place - back, 0.0) / self.num_steps for back in (0.0, 0.5, 1.0))
        x_u = ddim_step(denoise, ddim_step(denoise, x_t, t, s), s, u)
        return two_step_target(denoise.process, x_t, x_u, t, u)
