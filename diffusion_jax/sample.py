"""Draw images from trained runs.

    python -m diffusion_jax.sample --workdir=DIR --num=64 --out=DIR2
    python -m diffusion_jax.sample --workdir=BASE,SR --labels=10-per-class --guidance=2/1 --steps=25/15 --out=DIR2

One workdir draws from one run. Several, in order of resolution, are a cascade: each stage after the first is a
super-resolution run that takes the images of the one before. A super-resolution run alone takes low-resolution images
made from its own held-out data, or yours with --input. A run that was trained with text takes held-out texts, or yours
with --text. An image-to-image run takes held-out images, degraded as in training or by --task, or yours with --images and
perhaps --masks.

Out come 000000.png, 000001.png, ... and labels.json (or one samples.npz with --format=npz: arr_0 uint8 [N, H, W, C],
arr_1 the labels), grid.png with the first 64, and samples.json with the settings. A run that was interrupted continues
when the same command is given again; --num may grow. Image i is the same whatever the batch size, the number of
devices, or the interruptions; --seed, and everything else that shapes an image, may not change within one --out.

Guidance: --guidance=2 without a classifier (or, in the other convention, --guidance_weight=1), and --negative_labels for
what it should lead away from; --classifier=DIR --classifier_scale=1 follows a noisy classifier, and then --labels may be
asked of an unconditional model too.

How an image is drawn comes from the run's own `sampling` configuration. Flags replace parts of it: one value for all
stages, or one for each, as in 2/1. Anything else in the run's configuration is replaced by
--config.FIELD=VALUE, such as --config.sampling.percentile=99.

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

import numpy as np
from absl import flags
from tqdm import tqdm

from diffusion_jax import programs
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import command_line
from diffusion_jax.inference.generator import Generator
from diffusion_jax.inference.image_requests import image_requests
from diffusion_jax.inference.requests import LabelRule, Requests, label_rule, low_res_from, requests_of, texts_from
from diffusion_jax.inference.runs import Runs, find
from diffusion_jax.inference.samples import SampleFolder
from diffusion_jax.systems import Palette, SuperResolution
from diffusion_jax.systems.noisy_classifier import CANNOT_DRAW

_LOG = logging.getLogger(__name__)
_DEFAULT_NUM = 64
_RECORDED = ("text", "negative_labels", "images", "masks", "task")  # beside the samples, where they were given


@dataclasses.dataclass(frozen=True)
class Options:
    """Which samples of some runs, and where they go; see the flags' help."""

    out: str
    num: int | None = None
    labels: str | None = None
    input: str | None = None
    text: str | None = None
    negative_labels: str | None = None
    images: str | None = None
    masks: str | None = None
    task: str | None = None
    format: str = "png"
    seed: int = 0
    batch_size: int = 64


def sample(runs: Runs, options: Options) -> Path:
    """Draw what is missing of the samples asked for, and return the path of their grid.

    Raises:
      DiffusionError: bad options, before parameters are loaded or anything is compiled.
    """
    if not getattr(runs.cascade.stages[0].system, "draws_images", True):
        raise ConfigError(CANNOT_DRAW)
    num, rule = _labels(runs, options)
    rows = _requests(runs, options, num, rule)
    rows.check(runs.cascade, num)
    params, steps = runs.load()
    settings = {
        "stages": runs.settings(params, steps),
        "seed": options.seed,
        "labels": options.labels or ("all" if rule else None),
        "input": options.input,
    } | {name: getattr(options, name) for name in _RECORDED if getattr(options, name)}
    with SampleFolder(options.out, settings, options.format, runs.cascade.image_shape) as folder:
        missing = folder.missing(num)
        if 0 < len(missing) < num:
            _LOG.info("%d of %d samples are there already", num - len(missing), num)
        if missing:
            generator = Generator(runs.cascade, params, seed=options.seed, batch_size=options.batch_size)
            draw(generator, missing, rows, folder)
        return folder.finish(num, rows.labels(num))


def _labels(runs: Runs, options: Options) -> tuple[int, LabelRule | None]:
    """How many samples, and the rule of their labels if there is one."""
    num_classes, rule, wanted = runs.cascade.num_classes, None, None
    if options.labels is not None or (num_classes and options.input is None):
        rule, wanted = label_rule(options.labels or "all", num_classes)
    num = options.num if options.num is not None else (wanted or _DEFAULT_NUM)
    if num < 1:
        raise ConfigError(f"num must be at least 1, got {num}")
    return num, rule


def _requests(runs: Runs, options: Options, num: int, rule: LabelRule | None) -> Requests:
    first, columns = runs.cascade.stages[0].system, {}
    if options.input is not None and not isinstance(first, SuperResolution):
        raise ConfigError("--input is for super-resolution, but the first run draws from noise alone")
    if options.text is not None and not hasattr(first, "text_dim"):
        raise ConfigError("--text is for runs that were trained with text, but the first was not")
    if options.input is not None:
        columns |= low_res_from(options.input, first.low_res_shape)
    given = {name: getattr(options, name) for name in ("images", "masks", "task") if getattr(options, name) is not None}
    if given and not isinstance(first, Palette):
        raise ConfigError(f"--{next(iter(given))} is for image-to-image runs, but the first run is none")
    if options.text is not None:
        columns |= texts_from(options.text)
    elif given:
        columns |= image_requests(first, runs.configs[0], num, **given)
    elif options.input is None and first.needs_data:
        columns |= requests_of(first, runs.pipeline(0, "test"), num)
    if options.negative_labels is not None:
        avoided, _ = label_rule(options.negative_labels, runs.cascade.num_classes)
        columns["negative_label"] = avoided(np.arange(num))
    # Labels that come with the images describe them; those asked for go before.
    return Requests(columns, rule if options.labels or "label" not in columns else None)


def draw(generator: Generator, indices: Sequence[int], rows: Requests, folder: SampleFolder) -> float:
    """Draw samples into a folder; seconds per image after the first batch, which compiles (0 if there is no other)."""
    started, first_done, first_count = time.perf_counter(), 0.0, 0
    with tqdm(total=len(indices), unit="image", disable=not sys.stderr.isatty()) as bar:
        for drawn in generator(indices, rows):
            folder.add(drawn.indices, drawn.images[-1])
            if not first_count:
                first_done, first_count = time.perf_counter(), len(drawn.indices)
            bar.update(len(drawn.indices))
    ended = time.perf_counter()
    later = len(indices) - first_count
    each = (ended - first_done) / later if later else 0.0
    _LOG.info("%d images in %.1f s (%.1f ms each after the first batch)", len(indices), ended - started, 1e3 * each)
    return each


def define_flags() -> None:
    """Define the program's flags."""
    command_line.define_run_flags()
    flags.DEFINE_string("step", None, "Checkpoint step, for all stages or one for each as in A/B; the newest if left out.")
    flags.DEFINE_string("out", None, "Folder for the images; made if need be.", required=True)
    flags.DEFINE_integer("num", None, f"How many images; if left out, what --labels asks for, or {_DEFAULT_NUM}.")
    flags.DEFINE_string(
        "labels", None, "Classes: 'all' (in turn), '0,1,2' (in turn) or '10-per-class' (sorted); all if left out."
    )
    flags.DEFINE_string(
        "negative_labels", None, "Classes that guidance leads away from, instead of from no class: '3', or '0,1,2' (in turn)."
    )
    flags.DEFINE_string("input", None, "Low-resolution images: a folder, or an npz of arr_0 and, for labels, arr_1.")
    flags.DEFINE_string("text", None, "Text embeddings: an npz of tokens [N, L, D] and mask [N, L]; held-out ones if left out.")
    flags.DEFINE_string("images", None, "Image to image: a folder of images; they repeat where --num goes past their end.")
    flags.DEFINE_string("masks", None, "Image to image: masks by the images' names, white where pixels are missing.")
    flags.DEFINE_string("task", None, "Image to image: colorize, inpaint, uncrop or jpeg; the run's own mixture if left out.")
    flags.DEFINE_enum("format", "png", ["png", "npz"], "One image file each, or one npz.")
    flags.DEFINE_integer("seed", 0, "Of all noise.")
    flags.DEFINE_integer("batch_size", 64, "Images at a time, over all devices.", lower_bound=1)


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    programs.configure_logging()
    options = Options(**{field.name: values[field.name] for field in dataclasses.fields(Options)})
    return str(sample(find(**command_line.run_options(values, overrides)), options))


if __name__ == "__main__":
    define_flags()
    command_line.run_program("sample", _work)
