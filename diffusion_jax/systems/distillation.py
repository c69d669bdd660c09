"""Objectives that learn from a trained run, and progressive distillation: one step of a student does two of its teacher's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process, expand, losses, weightings
from diffusion_jax.process.types import Data, PerExample
from diffusion_jax.registry import build, part
from diffusion_jax.rng import named
from diffusion_jax.sampling.solvers.runge_kutta import ddim_step
from diffusion_jax.systems.base import Denoises, System, ability
from diffusion_jax.systems.denoising import Example, Objective, Parts
from diffusion_jax.systems.sampling import Sampling, guided
from diffusion_jax.values import Count

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Objective):
    """A student of the teacher's network, initialised from it, on the teacher's noise schedule.

    The trainer loads the teacher's parameters (the recipe's section `frozen`: {"teacher": DIR}) and hands them to the loss:
    they are neither trained, averaged nor saved. Sampling and evaluation do not need them.

    Args:
      guidance: the scale s of classifier-free guidance that is distilled into the student; 1 is none.
      threshold: of the teacher's predicted x0: "none", "static" or "dynamic".
    """

    guidance: float = 1.0
    threshold: Literal["none", "static", "dynamic"] = "none"

    needs = (TEACHER,)

    def check(self, system: Parts) -> None:
        """Raise a `ConfigError` for a learned variance, and for guidance without condition dropout."""
        if system.process.learns_variance:
            raise ConfigError(
                f"objective {self.name!r}: the steps of a distilled model are deterministic, so the variance "
                f"{system.process.variance!r} is of no use to it; use 'fixed_small'"
            )
        if self.guidance != 1 and not any(conditioner.drop for conditioner in system.conditioners):
            raise ConfigError(
                f"objective {self.name!r}: guidance {self.guidance:g} needs conditioners and a teacher trained with condition "
                "dropout: set guidance to 1, or the conditioners and their drop as the teacher has them"
            )
        if any(conditioner.keeps_known for conditioner in system.conditioners):
            raise ConfigError(f"objective {self.name!r} does not know of known pixels: leave the conditioner 'image' out")

    def teacher_process(self, system: Parts) -> Process:
        """Return the process that the teacher was trained with."""
        return system.process

    def start(self, frozen: Mapping[str, Any]) -> Any:
        """Return the teacher's parameters, where it teaches."""
        return frozen[TEACHER] if self.needs else None

    def check_frozen(self, system: Parts, name: str, other: System) -> None:
        """Raise a `ConfigError` if another system's run cannot teach this one; parameters are compared elsewhere."""
        teacher, ours = ability(other, Denoises, f"the {name}"), self.teacher_process(system)
        theirs = teacher.process
        meanings = [sorted(str(each.meaning) for each in one.conditioners) for one in (teacher, system)]
        if teacher.spec != system.spec or meanings[0] != meanings[1]:
            raise ConfigError(
                f"the {name} is of {teacher.spec} data with {meanings[0]}, the student of {system.spec} with {meanings[1]}: "
                "they must agree"
            )
        for field in ("prediction", "noise_input", "variance"):
            if getattr(theirs, field) != getattr(ours, field):
                raise ConfigError(
                    f"the {name} has the {field} {getattr(theirs, field)}, but the system expects {getattr(ours, field)}: "
                    "change the student's process"
                )
        times = np.linspace(0, 1, 9)[1:]
        if theirs.num_steps != ours.num_steps or not np.allclose(theirs.schedule.log_snr(times), ours.schedule.log_snr(times)):
            raise ConfigError(
                f"the {name} was trained on another noise schedule ({theirs.schedule.name}) than the student's "
                f"({ours.schedule.name}): they must be the same"
            )

    def teacher_denoiser(self, system: Parts, frozen: Mapping[str, Any], example: Example) -> Denoiser:
        """Bind the teacher under the conditioning of a training batch, guided and thresholded."""
        process, params = self.teacher_process(system), frozen[TEACHER]["network"]
        bind = lambda given: process.bind(system.network.apply, params, given)  # noqa: E731
        sampling = Sampling(guidance=self.guidance, threshold=self.threshold)
        return guided(bind, example.cond, example.null, sampling, system.codec.range)


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


@part("objective", "progressive_distillation")
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

    num_steps: Count
    weighting: Any = "truncated_snr"
    distance: Literal["l2", "l1", "l2_sum"] = "l2"

    name = "progressive_distillation"

    def __post_init__(self) -> None:
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
