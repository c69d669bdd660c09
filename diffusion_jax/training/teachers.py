"""The run that a system learns from: found, checked, and loaded as what training reads and never changes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import systems
from diffusion_jax.data.files import write_json
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training.checkpoints import restore_weights
from diffusion_jax.training.mesh import path_name
from diffusion_jax.training.workdir import finished_steps

logger = logging.getLogger(__name__)

_RECORD = "teacher.json"


def needed(system: Any) -> bool:
    """Whether a system's training needs a teacher."""
    return getattr(system, "needs_teacher", False)


def shapes(system: Any) -> dict[str, Any]:
    """The abstract `TrainState.frozen` of a system: its teacher's parameters are shaped like its own."""
    return {"teacher": jax.eval_shape(system.init, jax.random.key(0))} if needed(system) else {}


def check(system: Any) -> None:
    """Raise before anything is compiled if a system's teacher is missing, or cannot teach it.

    Raises:
      ConfigError: no teacher is named, or it is of other images, another process or another network (the first
        parameters that differ are named).
      CheckpointError: there is no run, no checkpoint of the step, or no such average.
    """
    if not needed(system):
        return
    if not system.teacher:
        raise ConfigError("the system learns from a trained run: name its directory with --config.system.teacher=DIR")
    config = configs.read(system.teacher)
    taught_by = systems.from_config(config)
    system.check_teacher(taught_by)
    _compare(system, taught_by)
    labels = [average.label for average in emas.from_config(config["training"]["ema"])]
    if system.teacher_weights not in ("ema", "raw", *labels):
        raise CheckpointError(
            f"{system.teacher} has no weights {system.teacher_weights!r} (it has: ema, raw, {', '.join(labels)})"
        )
    steps = finished_steps(system.teacher)
    if not steps or (system.teacher_step is not None and system.teacher_step not in steps):
        wanted = "finished checkpoint" if system.teacher_step is None else f"checkpoint of step {system.teacher_step}"
        raise CheckpointError(f"the teacher {system.teacher} has no {wanted} (it has: {', '.join(map(str, steps)) or 'none'})")


def _compare(system: Any, taught_by: Any) -> None:
    """Raise a `ConfigError` that names the first parameters in which two systems' networks differ."""
    ours, theirs = (
        {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (jax.eval_shape(each.init, jax.random.key(0)) for each in (system, taught_by))
    )
    wrong = [name for name in sorted(set(ours) | set(theirs)) if ours.get(name) != theirs.get(name)]
    if wrong:
        lines = [f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here" for name in wrong[:3]]
        raise ConfigError(
            f"the teacher {system.teacher} has another network than the student, in {len(wrong)} parameters: {'; '.join(lines)}"
        )


def load(program: Any, workdir: str | Path) -> dict[str, Any]:
    """`TrainState.frozen` of a program, placed on its mesh; empty where its system has no teacher.

    Which checkpoint it is goes into teacher.json of the working directory: a run that is resumed goes on with the same
    one, however much further its teacher has been trained.

    Raises:
      CheckpointError: the checkpoint is gone, or cannot be read.
    """
    system = program.system
    if not needed(system):
        return {}
    labels = [average.label for average in emas.from_config(configs.read(system.teacher)["training"]["ema"])]
    weights = labels[0] if system.teacher_weights == "ema" else system.teacher_weights
    record, resumed = Path(workdir) / _RECORD, bool(finished_steps(workdir))
    step = json.loads(record.read_text())["step"] if resumed and record.exists() else system.teacher_step
    params, found = restore_weights(system.teacher, program.target.frozen["teacher"], weights, step)
    if jax.process_index() == 0:
        write_json(record, {"teacher": str(system.teacher), "weights": weights, "step": found})
    logger.info("The teacher is checkpoint %d (%s) of %s.", found, weights, system.teacher)
    return {"teacher": params}
