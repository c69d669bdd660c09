"""Consistency models: one network evaluation from noise to data, trained from data or distilled from a teacher."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError, nearest
from diffusion_jax.process import Process, consistency
from diffusion_jax.process.consistency import METRICS, Ladder, time_of
from diffusion_jax.process.ode import heun_step
from diffusion_jax.process.parameterisations import Edm
from diffusion_jax.process.types import Data, PerExample
from diffusion_jax.registry import build, register
from diffusion_jax.rng import named
from diffusion_jax.systems.base import Batch
from diffusion_jax.systems.images import to_float
from diffusion_jax.systems.teachers import Taught

OBJECTIVES = ("training", "distillation")
STEP_WEIGHTINGS = ("uniform", "inverse_step")


def _check_known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = nearest(str(value), known)
        raise ConfigError(f"system 'consistency': unknown {field} {value!r}{hint} (known: {', '.join(known)})")


@register("system", "consistency")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Taught):
    """A consistency function, whose values at neighbouring noise levels of one path are drawn together.

    The process needs the prediction "consistency", and a schedule that reaches `sigma_max`, such as "edm". Sample it with
    the solver "consistency" and the grid "levels".

    Args:
      objective: "training" finds the path's point at the lower level with the image itself; "distillation" by one step
        of Heun's method of a teacher, from which the student starts.
      levels: how many noise levels, by training step: "fixed", "growing" or "doubling".
      pairs: which neighbours are drawn: "uniform" or "log_normal".
      sigma_max, rho: of the levels, which run from the prediction's sigma_min; see `process.consistency.Ladder`.
      target_decay: mu0: the network at the lower level is an average of the student that keeps mu(k) of itself a step;
        0 is the student itself.
      metric: "l2" (squared) or "l1", means over positions; "pseudo_huber".
      step_weighting: "uniform", or "inverse_step": 1 / (sigma_{n+1} - sigma_n).
      teacher_prediction: of the teacher; by default EDM's, with the student's sigma_data.
      (more): the fields of `Taught`; `weighting`, `times`, `distance` and `vlb_weight` are of no use here.

    Raises:
      ConfigError: unknown names, values out of range, a process that is no consistency model's.

    Sources: Song et al. 2023, algorithms 2 and 3 (arXiv 2303.01469); Song & Dhariwal 2023 (arXiv 2310.14189).
    """

    objective: str = "training"
    levels: Any = "growing"
    pairs: Any = "uniform"
    sigma_max: float = 80.0
    rho: float = 7.0
    target_decay: float = 0.9
    metric: str = "l2"
    step_weighting: str = "uniform"
    teacher_prediction: Any = None

    name = "consistency"

    def __post_init__(self) -> None:
        _check_known("objective", self.objective, OBJECTIVES)
        _check_known("metric", self.metric, tuple(METRICS))
        _check_known("step_weighting", self.step_weighting, STEP_WEIGHTINGS)
        if not 0 <= self.target_decay < 1:
            raise ConfigError(f"system {self.name!r}: target_decay must lie in [0, 1), got {self.target_decay}")
        if self.objective == "training" and (self.teacher is not None or self.guidance != 1):
            raise ConfigError(f"system {self.name!r}: the objective 'training' takes no teacher; use objective='distillation'")
        self._refuse_fields("weighting", "times", "distance", "vlb_weight")
        super().__post_init__()
        object.__setattr__(self, "levels", build("levels", self.levels))
        object.__setattr__(self, "pairs", build("pairs", self.pairs))
        self._check_process()

    def _check_process(self) -> None:
        prediction, schedule = self.process.prediction, self.process.schedule
        if not isinstance(prediction, consistency.Consistency) or self.process.num_steps is not None:
            raise ConfigError(
                f"system {self.name!r} needs the prediction 'consistency' and a continuous schedule, got "
                f"{prediction.name!r} and {schedule.name!r}"
            )
        top = float(jnp.exp(-0.5 * schedule.log_snr(1.0)))
        if self.ladder.high > top * (1 + 1e-6):
            raise ConfigError(
                f"system {self.name!r}: sigma_max {self.sigma_max:g} lies above {top:g}, the schedule's largest level"
            )

    @property
    def ladder(self) -> Ladder:
        """The noise levels."""
        return Ladder(self.process.prediction.sigma_min, self.sigma_max, self.rho)

    @property
    def needs_teacher(self) -> bool:
        """Whether training needs a teacher's parameters."""
        return self.objective == "distillation"

    @property
    def teacher_process(self) -> Process:
        """The student's, with the teacher's prediction."""
        prediction = self.teacher_prediction or Edm(self.process.prediction.sigma_data)
        return dataclasses.replace(self.process, prediction=prediction)

    # The target network ------------------------------------------------------------------------------------------------

    def init_state(self) -> dict[str, Any]:
        """Steps begun, and the target network, which `advance` first sets to the student."""
        state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}
        if self.target_decay:
            shapes = jax.eval_shape(self.init, jax.random.key(0))
            state["target"] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return state

    def advance(self, params: Any, state: dict[str, Any]) -> dict[str, Any]:
        """The state for the step that begins: the target network follows the student's last update.

        Args:
          params: the student's, after `state["step"]` steps.
        """
        done = state["step"]
        new = {"step": done + 1}
        if self.target_decay:
            last = jnp.maximum(done - 1, 0)
            kept = jnp.where(done == 0, 0.0, consistency.target_decay(self.target_decay, self.levels, last))
            new["target"] = jax.tree.map(lambda old, now: kept * old + (1 - kept) * now, state["target"], params)
        return new

    # The loss ----------------------------------------------------------------------------------------------------------

    def loss(
        self, params: Any, state: Any, batch: Batch, key: jax.Array, *, train: bool = True, frozen: Any = None
    ) -> tuple[jax.Array, Any]:
        """How far the student's value at one level is from the target's at the level below, on one path.

        Args:
          batch: "image" uint8 [B, H, W, C], and "label" int32 [B] where there are classes.
          train: False takes the finest levels, the student as its own target, and without a teacher the paths of the
            objective "training": how consistent the student is by itself.
          frozen: {"teacher": parameters} for distillation.

        Returns:
          (loss, (state, {"per_example": unweighted distances [B], "log_snr": of the upper level [B]})).
        """
        x0, process = to_float(batch["image"]), self.process
        cond = self._training_cond(x0, batch, key, train)
        count = self.levels(jnp.maximum(state["step"] - 1, 0)) if train else self.levels.last
        index = self.pairs(named(key, "levels"), x0.shape[0], self.ladder, count)
        low, high = (self.ladder.level(index + above, count) for above in (0, 1))
        t_low, t_high = time_of(process, low), time_of(process, high)
        noise = jax.random.normal(named(key, "noise"), x0.shape)
        x_high = process.diffuse(x0, t_high, noise)
        x_low = self._lower(frozen, cond, x0, noise, x_high, t_low, t_high)

        # One key: the same units are dropped on both sides.
        kwargs = {"train": train, "rngs": {"dropout": named(key, "dropout")}}
        target = state["target"] if train and self.target_decay else params
        value = process.bind(self.network.apply, params, cond, **kwargs)(x_high, t_high).x0
        wanted = process.bind(self.network.apply, target, cond, **kwargs)(x_low, t_low).x0
        per_example = METRICS[self.metric](value - jax.lax.stop_gradient(wanted))
        weight = 1 / (high - low) if self.step_weighting == "inverse_step" else 1.0
        return (weight * per_example).mean(), (state, {"per_example": per_example, "log_snr": process.log_snr(t_high)})

    def _lower(
        self, frozen: Any, cond: Any, x0: Data, noise: Data, x_high: Data, t_low: PerExample, t_high: PerExample
    ) -> jax.Array:
        """The path's point at the lower level."""
        if not frozen:
            return self.process.diffuse(x0, t_low, noise)
        return jax.lax.stop_gradient(heun_step(self.teacher_denoiser(frozen, cond), x_high, t_high, t_low))
