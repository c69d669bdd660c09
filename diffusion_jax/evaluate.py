"""Evaluate trained runs.

    python -m diffusion_jax.evaluate --workdir=DIR
    python -m diffusion_jax.evaluate --workdir=BASE,SR --num=2000 --guidance=2,1 --out=DIR2

One workdir evaluates one run; several, in order of resolution, a cascade. Samples are drawn as the runs' `sampling`
configuration says, of all classes in turn; flags replace parts of it as in diffusion_jax.sample.

Out come metrics.json and real_and_samples.png (held-out images on the left, samples on the right, of the same
classes). The metrics:

    classifier_accuracy   of a small classifier trained on the run's training images, on its held-out images; it is
                          trained once and kept in the run's directory
    agreement             the share of samples in which that classifier sees the asked-for class
    frechet_distance      of samples to training images, in that classifier's features: comparable between runs on the
                          same data, and with no published number
    frechet_reference     of held-out images to training images: what perfect samples would get
    held_out_loss         the training loss on held-out images
    bits_per_dim          the variational bound, where the process is a discrete chain (or --bits_per_dim is given)

Of a cascade, base_agreement and cascade_agreement are those of the first and of the last stage; what has no name of a
stage before it is of the last. The held-out images are the source's split "test".

Exit status: 0, or 2 after one line that says what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from absl import flags

from diffusion_jax import programs
from diffusion_jax.evaluation import Settings, command_line, evaluate_run


def define_flags() -> None:
    """Define the program's flags."""
    command_line.define_run_flags()
    flags.DEFINE_string("out", None, "Folder for the results; 'evaluation' in the last workdir if left out.")
    flags.DEFINE_integer("num", 1000, "How many samples.")
    flags.DEFINE_integer("seed", 0, "Of all noise.")
    flags.DEFINE_integer("batch_size", 128, "Samples at a time, over all devices.", lower_bound=1)
    flags.DEFINE_integer(
        "bits_per_dim", None, "Held-out images whose bound is computed; 16 of discrete chains, else none if left out."
    )
    flags.DEFINE_integer("classifier_steps", 1000, "Training steps of the small classifier.", lower_bound=1)


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    programs.configure_logging()
    settings = Settings(**{field.name: values[field.name] for field in dataclasses.fields(Settings)})
    metrics = evaluate_run(out=values["out"], settings=settings, **command_line.run_options(values, overrides))
    return json.dumps({name: value for name, value in metrics.items() if name != "settings"}, indent=2)


if __name__ == "__main__":
    define_flags()
    command_line.run_program("evaluate", _work)
