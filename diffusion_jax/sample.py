"""Draw samples from trained runs.

    python -m diffusion_jax.sample --workdir=DIR --num=64 --out=DIR2
    python -m diffusion_jax.sample --workdir=BASE,SR --labels=10-per-class --guidance=2/1 --steps=25/15 --out=DIR2

One workdir draws from one run. Several, in order of resolution, are a cascade: each stage after the first is a
super-resolution run that takes the images of the one before. What a run was conditioned on is asked for by its flags
(--labels, --input, --text, --images, ...); without them labels go round all classes, and low-resolution images, texts and
degraded images are those of the run's own held-out data.

Out come 000000.png, 000001.png, ... and labels.json (or one samples.npz with --format=npz: arr_0 uint8 [N, H, W, C],
arr_1 the labels), grid.png with the first 64, samples.json with the settings, and manifest.jsonl with the checksum of every
file. A run that was interrupted continues when the same command is given again; --num may grow, but not shrink. Image i is
the same whatever the batch size, the number of devices, or the interruptions; --seed, and everything else that shapes an
image, may not change within one --out.

--out is a new folder, an empty one, or one that this command filled. Nothing else is written over or taken for a sample: a
folder that holds any other file, or a sample that was changed, is an error before anything is loaded. One program at a time
writes into a folder.

Guidance: --guidance=2 without a classifier (or, in the other convention, --guidance_weight=1), and --negative_labels for
what it should lead away from; --classifier=DIR --classifier_scale=1 follows a noisy classifier, and then --labels may be
asked of an unconditional model too.

How an image is drawn comes from the run's own `sampling` configuration. Flags replace parts of it: one value for all
stages, or one for each, as in 2/1. Anything else in the run's configuration is replaced by
--config.FIELD=VALUE, such as --config.sampling.percentile=99.

Several hosts: start the same command on each with --coordinator=HOST:PORT --num_processes=N --process_id=I, as in
diffusion_jax.train; parameters lie on the devices as the run's mesh, or --mesh, says. The first process writes.

Exit status: 0, or 2 after one line that says what is wrong.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from diffusion_jax import processes
from diffusion_jax.inference import command_line, requests
from diffusion_jax.inference.generator import Generator
from diffusion_jax.inference.requests import Requests
from diffusion_jax.inference.run import Runs, find
from diffusion_jax.inference.samples import SampleFolder, check_folder
from diffusion_jax.inference.stores import WRITERS
from diffusion_jax.values import Count, Seed, check_options

_LOG = logging.getLogger("diffusion_jax.sample")
_DEFAULT_NUM = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """Which samples of some runs, and where they go; see the flags' help.

    Attributes:
      conditioning: the values of conditioners' flags that were given, by name, such as {"labels": "3,7"}.
    """

    out: str
    num: Count | None = None
    format: str | None = None
    seed: Seed = 0
    batch_size: Count = 64
    conditioning: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)


def sample(runs: Runs, options: Options) -> Path:
    """Draw what is missing of the samples asked for, and return the path of their grid.

    Raises:
      DiffusionError: bad options, or a folder that holds other files, before parameters are loaded or anything is compiled.
    """
    check_folder(options.out, options.format, runs.cascade.spec)
    asked, suggested = requests.ask(
        runs.cascade.conditioners, runs.runs[0].data, options.num or _DEFAULT_NUM, options.conditioning
    )
    num = options.num or suggested or _DEFAULT_NUM
    asked.check(runs.cascade, num)
    params, steps = runs.load()
    settings = {"stages": runs.settings(params, steps), "seed": options.seed, **options.conditioning}
    with SampleFolder(options.out, settings, options.format, runs.cascade.spec) as folder:
        missing = folder.missing(num)
        if len(missing) < num:
            _LOG.info("%d of %d samples are there already", num - len(missing), num)
        if missing:
            generator = Generator(runs.cascade, params, seed=options.seed, batch_size=options.batch_size)
            draw(generator, missing, asked, folder)
        shown = folder.finish(num, asked.labels(num))
    _LOG.info(
        "To measure them: python -m diffusion_jax.evaluate --samples=%s --workdir=%s --out=DIR",
        options.out,
        runs.runs[-1].workdir,
    )
    return shown


def draw(generator: Generator, indices: Sequence[int], wanted: Requests, folder: SampleFolder) -> float:
    """Draw samples into a folder; return the seconds of each after the first batch, which compiles (0 if there is no other)."""
    started, first_done, first_count = time.perf_counter(), 0.0, 0
    with tqdm(total=len(indices), unit="image", disable=not (processes.is_first() and sys.stderr.isatty())) as bar:
        for drawn in generator(indices, wanted):
            folder.add(drawn.indices, drawn.images[-1])
            if not first_count:
                first_done, first_count = time.perf_counter(), len(drawn.indices)
            bar.update(len(drawn.indices))
    ended = time.perf_counter()
    later = len(indices) - first_count
    each = (ended - first_done) / later if later else 0.0
    speed = f", {1 / each:.1f} images/s after the first batch" if each else ""
    _LOG.info("%d images in %.1f s%s", len(indices), ended - started, speed)
    return each


def define_flags() -> None:
    """Define the program's flags."""
    command_line.define_run_flags()
    command_line.define_conditioning_flags()
    flags.DEFINE_string("step", None, "Checkpoint step, for all stages or one for each as in A/B; the newest if left out.")
    flags.DEFINE_string("out", None, "Folder for the samples; made if need be.", required=True)
    flags.DEFINE_integer("num", None, f"How many samples; if left out, what --labels asks for, or {_DEFAULT_NUM}.")
    flags.DEFINE_enum("format", None, list(WRITERS["image"]), "One image file each, or one npz; png of images if left out.")
    flags.DEFINE_integer("seed", 0, "Of all noise.")
    flags.DEFINE_integer("batch_size", 64, "Samples at a time, over all devices.")


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    fields = {field.name: values[field.name] for field in dataclasses.fields(Options) if field.name != "conditioning"}
    options = Options(**fields, conditioning=command_line.conditioning(values))
    return str(sample(find(**command_line.run_options(values, overrides)), options))


if __name__ == "__main__":
    command_line.run_program("sample", define_flags, _work)
