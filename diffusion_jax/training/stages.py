"""Runs that follow one another: each stage of progressive distillation is taught by the one before it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import ConfigError
from diffusion_jax.training.config import apply_overrides, complete
from diffusion_jax.training.loop import train

logger = logging.getLogger(__name__)


def halvings(first: int, last: int = 1) -> list[int]:
    """Return the numbers of steps of the students: `first`, and half of it again and again, to `last`.

    >>> halvings(32)
    [32, 16, 8, 4, 2, 1]

    Raises:
      ConfigError: `last` is not reached by halving.
    """
    numbers = [first]
    while numbers[-1] > last and numbers[-1] % 2 == 0:
        numbers.append(numbers[-1] // 2)
    if first < 1 or numbers[-1] != last:
        raise ConfigError(
            f"halving {first} steps again and again does not come to {last}; start from {last} times a power of 2"
        )
    return numbers


def halve(
    config: Mapping[str, Any], teacher: str | Path, workdir: str | Path, first: int, last: int = 1, *, last_longer: float = 1.0
) -> list[Path]:
    """Distil a run into students of `first`, ..., `last` steps, a run of its own each, in `workdir`/steps_N.

    The first student is taught by `teacher`, with the recipe's guidance, and the step and weights in its `frozen.teacher`;
    every other one by the newest averaged weights of the student before it, which has the guidance in it already. Interrupted,
    the same call goes on where it was.

    Args:
      config: a recipe of the objective "progressive_distillation"; its teacher, its number of steps, and those of its
        sampling are filled in.
      teacher: the directory of a trained run.
      first, last: steps of the first and of the last student.
      last_longer: a factor on the training steps of the students of one and two steps; the paper's is 2.

    Returns:
      The directories, in order; fewer if training was interrupted.

    Source: Salimans & Ho 2022, algorithm 2 (arXiv 2202.00512).
    """
    done: list[Path] = []
    config = complete(config)
    given = config["frozen"].get("teacher")
    source = {**(given if isinstance(given, Mapping) else {}), "run": str(teacher)}
    for number in halvings(first, last):
        more = {"frozen.teacher": source, "system.objective.num_steps": number, "sampling.steps": number}
        if done:
            more |= {"frozen.teacher": {"run": str(done[-1])}, "system.objective.guidance": 1.0}
        if number <= 2:
            more["training.steps"] = round(config["training"]["steps"] * last_longer)
        stage = Path(workdir) / f"steps_{number}"
        logger.info("Stage of %d steps, taught by %s.", number, more["frozen.teacher"]["run"])
        result = train(apply_overrides(config, more), stage)
        if result["interrupted"]:
            break
        done.append(stage)
    return done
