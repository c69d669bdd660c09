"""What objectives share that learn from a trained run: how it is checked, and how its denoiser is bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.systems.base import Denoises, System, ability
from diffusion_jax.systems.denoising import Example, Objective, Parts
from diffusion_jax.systems.sampling import Sampling, guided

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
    threshold: str = "none"

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
