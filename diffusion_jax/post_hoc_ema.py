"""Make an average of a trained run's parameters that training did not keep.

    python -m diffusion_jax.post_hoc_ema --workdir=RUN --sigma_rel=0.13 --out=RUN_013
    python -m diffusion_jax.evaluate --workdir=RUN_013

The run must have kept power averages and several checkpoints, such as

    training.ema = [{"name": "power", "sigma_rel": 0.05}, {"name": "power", "sigma_rel": 0.10}]
    training.keep_every = 4096

--sigma_rel is the width of the new average relative to the length of training: 0.05 follows the parameters closely, 0.25
averages over most of the run. --out becomes a run of one checkpoint, which `sample` and `evaluate` take as any other; it is not
for training. The best width is found by evaluating several (Karras et al. 2024, arXiv 2312.02696).

Exit status: 0, or 2 after one line that says what is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from absl import flags

from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import command_line
from diffusion_jax.training import post_hoc_ema

_LOG = logging.getLogger("diffusion_jax.post_hoc_ema")


def define_flags() -> None:
    """Define the program's flags."""
    flags.DEFINE_string("workdir", None, "The trained run.", required=True)
    flags.DEFINE_float("sigma_rel", None, "Relative width of the new average, between 0 and 0.28.", required=True)
    flags.DEFINE_string("out", None, "Directory of the new run; made if need be.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint where the average ends; the newest if left out.")


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    if overrides:
        raise ConfigError(f"this program changes no configuration: leave out --config.{next(iter(overrides))}")
    found = post_hoc_ema.write_run(values["workdir"], values["out"], values["sigma_rel"], values["step"])
    _LOG.info(
        "Width %g at step %d, of %d stored averages; distance from the ideal profile: %.2g",
        values["sigma_rel"], found.step, len(found.used), found.residual,
    )  # fmt: skip
    return values["out"]


if __name__ == "__main__":
    command_line.run_program("post_hoc_ema", define_flags, _work)
