"""Train a diffusion model.

    python -m diffusion_jax.train --config=configs/mnist.py:base --workdir=runs/mnist/base

A recipe is a Python file with get_config(variant); what follows the colon is the variant. Any field is overridden on the
command line:

    --config.training.steps=2000 --config.data.batch_size=128 --config.optimizer.learning_rate=1e-4

The working directory receives config.json, data.json (what the data were), checkpoints/, metrics.jsonl (a JSON object a
line), tensorboard/ (event files) and, with --config.training.grid_every=N, grids/ (samples of the averaged and the raw
weights side by side).

To resume, run the same command again: training goes on from the newest readable checkpoint, with the numbers it would
have had without the break, on any number of devices. SIGTERM and Ctrl-C save first. A directory that holds another
configuration's run is refused, and the difference is shown; nothing is overwritten. So are data that are no longer those
that the run began with (an image added, removed or changed, a class renamed), unless --allow_other_data is given.

The first Ctrl-C is answered at once and saves after the step; a second one ends the program. One program at a time trains
in a directory; the lock of a dead one does not stand in the way.

To see what a recipe needs before paying for it: --dry_run builds and compiles it and prints parameters, FLOPs and memory
per device, and the resolved configuration as JSON.

Several hosts: start the same command on each with --coordinator=HOST:PORT --num_processes=N --process_id=I (on TPU pods
and under SLURM --distributed alone finds them); they wait for each other at most --join_seconds. Hosts whose flags, code,
libraries, configuration or data differ are refused with the first difference. A mistake on one ends all; a dead peer ends
the others within --heartbeat_seconds; restart them all and they go on from the last checkpoint.

Exit status: 0 finished, or saved after SIGTERM or Ctrl-C; 2 a mistake in the configuration, the data or the directory (one
line on stderr says which and how to mend it), or a full disk: no use to start again as it is; 17 a process of several was
lost: start all again; 130 interrupted by Ctrl-C, nothing half written.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from absl import flags

from diffusion_jax import programs, systems, training
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import command_line
from diffusion_jax.systems import Samples
from diffusion_jax.training.config import recorded
from diffusion_jax.training.mesh import summary
from diffusion_jax.training.recipes import load_recipe


def define_flags() -> None:
    """Define the program's flags."""
    flags.DEFINE_string(
        "config", None, "The recipe, FILE.py or FILE.py:VARIANT; --config.FIELD=VALUE overrides.", required=True
    )
    flags.DEFINE_string("workdir", None, "The run's directory; it is resumed if it holds checkpoints.")
    flags.DEFINE_bool(
        "allow_other_data", False, "Go on where images were added, removed or changed, or classes renamed, since the run began."
    )
    flags.DEFINE_bool("dry_run", False, "Compile, print parameters and memory per device, and stop.")
    programs.define_process_flags()


def _describe(program: training.Program) -> str:
    """What a run needs, in lines."""
    memory = program.step.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    used -= memory.alias_size_in_bytes
    mesh = ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    lines = [
        f"parameters            {program.num_params():,}",
        f"mesh                  {mesh}",
        f"memory per device     {used / 2**20:,.1f} MiB (state {memory.argument_size_in_bytes / 2**20:,.1f} MiB)",
        f"FLOPs per step        {program.flops or 0:.3e} per device",
        f"examples              {len(program.pipeline):,} ({program.pipeline.skipped} corrupt ones skipped)",
        "parameters by sharding",
        *(f"  {spec:50s}{count:>16,}" for spec, count in summary(program.target.params).items()),
    ]
    return "\n".join(lines)


def _next(config: Mapping[str, Any], workdir: str, interrupted: bool) -> str:
    """The command that comes after this one."""
    workdir = shlex.quote(workdir)
    if interrupted:
        return "Next: the same command again, to go on."
    if not isinstance(systems.from_config(config), Samples):
        return f"Next: python -m diffusion_jax.evaluate --workdir={workdir}"
    return f"Next: python -m diffusion_jax.sample --workdir={workdir} --out={workdir}/samples"


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """Do what the flags say, and return what to print.

    Raises:
      DiffusionError: a mistake in the configuration, the data or the directory.
    """
    if not values["dry_run"] and not values["workdir"]:
        raise ConfigError("--workdir=DIR is needed: where the run's checkpoints and metrics go")
    config = load_recipe(values["config"], overrides)
    if values["dry_run"]:
        program = training.prepare(config)
        return f"{_describe(program)}\n{json.dumps(recorded(program.config), indent=2)}"
    done = training.train(config, values["workdir"], allow_other_data=values.get("allow_other_data", False))
    after = _next(config, values["workdir"], done["interrupted"])
    return f"{values['workdir']}: step {done['step']} of {config['training']['steps']}\n{after}"


if __name__ == "__main__":
    command_line.run_program("train", define_flags, _work)
