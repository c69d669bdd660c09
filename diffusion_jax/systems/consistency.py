"""Consistency models: one network evaluation from noise to data, trained from data or distilled from a teacher."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process, consistency
from diffusion_jax.process.consistency import METRICS, Ladder, time_of
from diffusion_jax.process.parameterisations import Edm
from diffusion_jax.registry import build, part
from diffusion_jax.rng import named
from diffusion_jax.sampling.solvers.runge_kutta import heun_step
from diffusion_jax.systems.denoising import Example, Parts
from diffusion_jax.systems.distillation import TEACHER, Distillation
from diffusion_jax.values import Positive, Probability

_LOG = logging.getLogger(__name__)


@part("objective", "consistency")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Distillation):
    """A consistency function, whose values at neighbouring noise levels of one path are drawn together.

    The process needs the prediction "consistency", and a schedule that reaches `sigma_max`, such as "edm". Sample it with
    the solver "consistency" and the grid "levels".

    Args:
      paths: "data" finds the path's point at the lower level with the image itself (consistency training); "teacher" by one
        step of Heun's method of a teacher, from which the student starts (consistency distillation).
      levels: how many noise levels, by training step: "fixed", "growing" or "doubling".
      pairs: which neighbours are drawn: "uniform" or "log_normal".
      sigma_max, rho: of the levels, which run from the prediction's sigma_min; see `process.consistency.Ladder`.
      target_decay: mu0: the network at the lower level is an average of the student that keeps mu(k) of itself a step;
        0 is the student itself.
      metric: "l2" (squared) or "l1", means over positions; "pseudo_huber".
      step_weighting: "uniform", or "inverse_step": 1 / (sigma_{n+1} - sigma_n).
      teacher_prediction: of the teacher; by default EDM's, with the student's sigma_data.
      (more): the fields of `Distillation`.

    Raises:
      ConfigError: unknown names, values out of range, a process that is no consistency model's.

    Sources: Song et al. 2023, algorithms 2 and 3 (arXiv 2303.01469); Song & Dhariwal 2023 (arXiv 2310.14189).
    """

    paths: Literal["data", "teacher"] = "data"
    levels: Any = "growing"
    pairs: Any = "uniform"
    sigma_max: Positive = 80.0
    rho: Positive = 7.0
    target_decay: Probability = 0.9
    metric: Literal["l2", "l1", "pseudo_huber"] = "l2"
    step_weighting: Literal["uniform", "inverse_step"] = "uniform"
    teacher_prediction: Any = None

    name = "consistency"

    def __post_init__(self) -> None:
        if self.paths == "data" and self.guidance != 1:
            raise ConfigError(f"objective {self.name!r}: paths 'data' take no teacher to be guided; use paths='teacher'")
        object.__setattr__(self, "needs", (TEACHER,) if self.paths == "teacher" else ())
        object.__setattr__(self, "levels", build("levels", self.levels))
        object.__setattr__(self, "pairs", build("pairs", self.pairs))

    def check(self, system: Parts) -> None:
        """Raise a `ConfigError` unless the process is a consistency model's."""
        super().check(system)
        prediction, schedule = system.process.prediction, system.process.schedule
        if not isinstance(prediction, consistency.Consistency) or system.process.num_steps is not None:
            raise ConfigError(
                f"objective {self.name!r} needs the prediction 'consistency' and a continuous schedule, got "
                f"{prediction.name!r} and {schedule.name!r}"
            )
        top = float(jnp.exp(-0.5 * schedule.log_snr(1.0)))
        if self.sigma_max > top * (1 + 1e-6):
            raise ConfigError(
                f"objective {self.name!r}: sigma_max {self.sigma_max:g} lies above {top:g}, the schedule's largest level"
            )

    def check_steps(self, steps: int) -> None:
        """Warn where levels grow over another number of steps: a run may be cut short or go on, so it is no error."""
        planned = self.levels.steps if isinstance(self.levels, consistency.Growing | consistency.Doubling) else steps
        if planned != steps:
            _LOG.warning(
                "system.objective.levels plans its noise levels over %d steps, but training.steps is %d: set "
                "system.objective.levels.steps to it.", planned, steps,
            )  # fmt: skip

    def ladder(self, system: Parts) -> Ladder:
        """Return the noise levels."""
        return Ladder(system.process.prediction.sigma_min, self.sigma_max, self.rho)

    def teacher_process(self, system: Parts) -> Process:
        """Return the student's, with the teacher's prediction."""
        prediction = self.teacher_prediction or Edm(system.process.prediction.sigma_data)
        return dataclasses.replace(system.process, prediction=prediction)

    def init_state(self, system: Parts) -> dict[str, Any]:
        """Make room for the steps begun, and for the target network, which the first step sets to the student."""
        state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}
        if self.target_decay:
            state["target"] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), system.network.shapes())
        return state

    def advanced(self, state: dict[str, Any], params: Any, step: jax.Array) -> dict[str, Any]:
        """Return the state for the step that begins: the target network follows the student's last update.

        The microbatches of one step find it advanced already.
        """
        done = state["step"]
        new: dict[str, Any] = {"step": jnp.asarray(step + 1, jnp.int32)}
        if self.target_decay:
            kept = jnp.where(done == 0, 0.0, consistency.target_decay(self.target_decay, self.levels, jnp.maximum(done - 1, 0)))
            kept = jnp.where(done == step + 1, 1.0, kept)
            follow = lambda old, now: kept * old + (1 - kept) * jax.lax.stop_gradient(now)  # noqa: E731
            new["target"] = jax.tree.map(follow, state["target"], params)
        return new

    def loss(
        self, system: Parts, params: Any, state: Any, example: Example, key: jax.Array, *,
        step: jax.Array, frozen: Mapping[str, Any], train: bool,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        """Compute how far the student's value at one level is from the target's at the level below, on one path.

        Args:
          train: False takes the finest levels, the student as its own target, and without a teacher the paths of data:
            how consistent the student is by itself.
        """
        process, ladder = system.process, self.ladder(system)
        state = self.advanced(state, params, step) if train else state
        count = self.levels(jnp.maximum(state["step"] - 1, 0)) if train else self.levels.last
        index = self.pairs(named(key, "levels"), example.x0.shape[0], ladder, count)
        low, high = (ladder.level(index + above, count) for above in (0, 1))
        t_low, t_high = time_of(process, low), time_of(process, high)
        noise = jax.random.normal(named(key, "noise"), example.x0.shape)
        x_high = process.diffuse(example.x0, t_high, noise)
        if TEACHER in frozen:
            x_low = jax.lax.stop_gradient(heun_step(self.teacher_denoiser(system, frozen, example), x_high, t_high, t_low))
        else:
            x_low = process.diffuse(example.x0, t_low, noise)

        # One key: the same units are dropped on both sides.
        kwargs = {"train": train, "rngs": {"dropout": named(key, "dropout")}}
        target = state["target"] if train and self.target_decay else params
        value = process.bind(system.network.apply, params, example.cond, **kwargs)(x_high, t_high).x0
        aim = process.bind(system.network.apply, target, example.cond, **kwargs)(x_low, t_low).x0
        per_example = METRICS[self.metric](value - jax.lax.stop_gradient(aim))
        weight = 1 / (high - low) if self.step_weighting == "inverse_step" else 1.0
        aux = {"state": state, "per_example": per_example, "log_snr": process.log_snr(t_high)}
        return (weight * per_example).mean(), aux
