"""What systems share that learn from a trained run: which run, how it is checked, and how its network is asked."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.sampling import Sampling, guided


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taught(Diffusion):
    """A student of the teacher's network, initialised from it, on the teacher's noise schedule.

    The trainer loads the teacher's parameters and hands them to `loss` as `frozen`: they are neither trained, averaged
    nor saved. Sampling and evaluation do not need them.

    Args:
      teacher: the directory of the teacher's run.
      teacher_weights: "ema", "raw", or the label of an average.
      teacher_step: of the checkpoint; None is the newest when training starts (and the same one when it is resumed).
      guidance: the scale s of classifier-free guidance that is distilled into the student; 1 is none.
      threshold: of the teacher's predicted x0: "none", "static" or "dynamic".
      (more): the fields of `Diffusion`.
    """

    teacher: str | None = None
    teacher_weights: str = "ema"
    teacher_step: int | None = None
    guidance: float = 1.0
    threshold: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.process.learns_variance:
            raise ConfigError(
                f"system {self.name!r}: the steps of a distilled model are deterministic, so the variance "
                f"{self.process.variance!r} is of no use to it; use 'fixed_small'"
            )
        if self.guidance != 1 and not (self.num_classes and self.cond_drop):
            raise ConfigError(
                f"system {self.name!r}: guidance {self.guidance:g} needs classes and a teacher trained with condition dropout: "
                "set guidance to 1, or num_classes and cond_drop as the teacher has them"
            )

    def _refuse_fields(self, *names: str) -> None:
        """Fields of `Diffusion` that mean nothing here must be as they are by default."""
        for field in dataclasses.fields(Diffusion):
            if field.name in names and getattr(self, field.name) != field.default:
                raise ConfigError(f"system {self.name!r} makes no use of {field.name!r}: leave it out")

    @property
    def _teacher_sampling(self) -> Sampling:
        return Sampling(guidance=self.guidance, threshold=self.threshold)

    @property
    def needs_teacher(self) -> bool:
        """Whether training needs a teacher's parameters."""
        return True

    @property
    def teacher_process(self) -> Process:
        """The process that the teacher was trained with."""
        return self.process

    def start(self, frozen: Any) -> Any:
        """The student's first parameters: the teacher's."""
        return frozen["teacher"]

    def check_teacher(self, teacher: Any) -> None:
        """Raise a `ConfigError` if another system's run cannot teach this one; parameters are compared elsewhere.

        Args:
          teacher: the system of the teacher's run.
        """
        theirs, ours = getattr(teacher, "process", None), self.teacher_process
        if theirs is None or tuple(teacher.image_shape) != self.image_shape or teacher.num_classes != self.num_classes:
            raise ConfigError(
                f"the teacher {self.teacher} is of images {tuple(teacher.image_shape)} in {teacher.num_classes} classes, the "
                f"student of {self.image_shape} in {self.num_classes}: they must agree"
            )
        for field in ("prediction", "noise_input", "variance"):
            if getattr(theirs, field) != getattr(ours, field):
                raise ConfigError(
                    f"the teacher {self.teacher} has the {field} {getattr(theirs, field)}, but the system expects "
                    f"{getattr(ours, field)}: change the student's process"
                )
        times = np.linspace(0, 1, 9)[1:]
        if theirs.num_steps != ours.num_steps or not np.allclose(theirs.schedule.log_snr(times), ours.schedule.log_snr(times)):
            raise ConfigError(
                f"the teacher {self.teacher} was trained on another noise schedule ({theirs.schedule.name}) than the "
                f"student's ({ours.schedule.name}): they must be the same"
            )

    def teacher_denoiser(self, frozen: Any, cond: dict[str, jax.Array]) -> Denoiser:
        """The teacher under the conditioning of a training batch, guided and thresholded."""
        null = dict(cond)
        if self.num_classes:
            null["label"] = 0 * cond["label"] + self.num_classes
        bind = lambda given: self.teacher_process.bind(self.network.apply, frozen["teacher"], given)  # noqa: E731
        return guided(bind, cond, null, self._teacher_sampling)
