"""Draw images from trained runs.

    python -m diffusion_jax.sample --workdir=DIR --num=64 --out=DIR2
    python -m diffusion_jax.sample --workdir=BASE,SR --labels=10-per-class --guidance=2,1 --steps=25,15 --out=DIR2

One workdir draws from one run. Several, in order of resolution, are a cascade: each stage after the first is a
super-resolution run that takes the images of the one before. A super-resolution run alone takes low-resolution images
made from its own held-out data, or yours with --input.

Out come 000000.png, 000001.png, ... (or one samples.npz with --format=npz: arr_0 uint8 [N, H, W, C], arr_1 the labels),
grid.png with the first 64, and samples.json with the settings. A run that was interrupted continues when the same
command is given again; --num may grow. Image i is the same whatever the batch size, the number of devices, or the
interruptions; --seed, and everything that shapes an image, may not change within one --out.

How an image is drawn comes from the run's own `sampling` configuration. Flags replace parts of it: one value for all
stages, or one for each, separated by commas. Anything else in the run's configuration is replaced by
--config.FIELD=VALUE, such as --config.sampling.threshold=dynamic.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from diffusion_jax.errors import ConfigError, DiffusionError
from diffusion_jax.evaluation import runs
from diffusion_jax.evaluation.generate import Generator, RequestRows
from diffusion_jax.evaluation.requests import LabelRule, label_rule, low_res_from, low_res_of, rows_by_index
from diffusion_jax.evaluation.samples import SampleFolder


@dataclasses.dataclass(frozen=True)
class Options:
    """What the program is asked for; see the flags' help.

    `sampling` maps fields of `Sampling` to a value for all stages or one for each; `steps` are checkpoints.
    """

    workdirs: Sequence[str]
    out: str
    num: int | None = None
    labels: str | None = None
    input: str | None = None
    format: str = "png"
    seed: int = 0
    batch_size: int = 64
    checkpoints: Sequence[int | None] = (None,)
    sampling: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(options: Options) -> Path:
    """Draw what is missing of the samples asked for; the grid's path is returned.

    Raises:
      DiffusionError: see the module's docstring; before anything is compiled.
    """
    loaded = runs.load(
        options.workdirs, steps=options.checkpoints, overrides=options.overrides, sampling=options.sampling
    )
    num, rule = _labels(options, loaded.cascade.num_classes)
    if num < 1:
        raise ConfigError(f"--num must be at least 1, got {num}")
    rows = _requests(options, loaded, num, rule)
    everything = rows(np.arange(num))
    loaded.cascade.check_request(everything)
    settings = {
        **loaded.settings(),
        "seed": options.seed,
        "labels": options.labels or ("all" if rule else None),
        "input": options.input,
    }
    with SampleFolder(options.out, settings, options.format, loaded.cascade.image_shape) as folder:
        missing = folder.missing(num)
        if 0 < len(missing) < num:
            logging.info("%d of %d samples are there already", num - len(missing), num)
        if missing:
            _draw(options, loaded, missing, rows, folder)
        return folder.finish(num, everything.get("label"))


def _labels(options: Options, num_classes: int) -> tuple[int, LabelRule | None]:
    """How many samples, and the rule of their labels if there is one."""
    if options.labels is None and (not num_classes or options.input is not None):
        return (64 if options.num is None else options.num), None
    rule, wanted = label_rule(options.labels or "all", num_classes)
    return next(value for value in (options.num, wanted, 64) if value is not None), rule


def _requests(options: Options, loaded: runs.Loaded, num: int, rule: LabelRule | None) -> RequestRows:
    first = loaded.cascade.stages[0].system
    if not hasattr(first, "low_res_shape"):
        if options.input is not None:
            raise ConfigError("--input is for super-resolution; the first run draws from noise alone")
        return rows_by_index({}, rule)
    if options.input is not None:
        columns = low_res_from(options.input, first.low_res_shape)
    else:
        columns = low_res_of(first, loaded.pipeline(0, "test"), num)
    # Labels that come with the images describe them; those asked for by name go before.
    return rows_by_index(columns, rule if options.labels or "label" not in columns else None)


def _draw(
    options: Options, loaded: runs.Loaded, missing: Sequence[int], rows: RequestRows, folder: SampleFolder
) -> None:
    generator = Generator(loaded.cascade, loaded.params, seed=options.seed, batch_size=options.batch_size)
    started, first_done = time.perf_counter(), None
    with tqdm(total=len(missing), unit="image", disable=not sys.stderr.isatty()) as bar:
        for drawn in generator(missing, rows):
            folder.add(drawn.indices, drawn.images[-1])
            first_done = first_done or (time.perf_counter(), len(drawn.indices))
            bar.update(len(drawn.indices))
    ended = time.perf_counter()
    logging.info("%d images in %.1f s", len(missing), ended - started)
    if first_done and len(missing) > first_done[1]:
        logging.info(
            "%.1f ms an image after the first batch", 1e3 * (ended - first_done[0]) / (len(missing) - first_done[1])
        )


# The command line -----------------------------------------------------------------------------------------------------

_SAMPLING_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "solver": (str, "Solver: ddpm, ddim, euler, heun or dpmpp_2m."),
    "grid": (str, "Time grid: uniform, trailing, leading, quadratic or karras."),
    "steps": (int, "Steps of the solver."),
    "guidance": (float, "Classifier-free guidance scale; 1 is none."),
    "threshold": (str, "Of the predicted image: none, static or dynamic."),
    "weights": (str, "Parameters: ema or raw."),
    "aug_level": (float, "Super-resolution: noise level in [0, 1] put on the low-resolution image."),
    "truncated": (
        lambda text: {"true": True, "false": False, "1": True, "0": False}[text.lower()],
        "Cascade: true stops the chain of the stage before at the augmentation level, instead of noising its image.",
    ),
}


def define_flags() -> None:
    """Define the program's flags."""
    flags.DEFINE_list("workdir", None, "Run to draw from; several, comma-separated, are a cascade.", required=True)
    flags.DEFINE_string("out", None, "Folder for the images; made if need be.", required=True)
    flags.DEFINE_integer("num", None, "How many images; 64 if --labels does not say.")
    flags.DEFINE_string(
        "labels", None, "Classes: 'all' (in turn), '0,1,2' (in turn) or '10-per-class' (sorted); all if left out."
    )
    flags.DEFINE_string("input", None, "Low-resolution images: a folder, or an npz with arr_0 and, for labels, arr_1.")
    flags.DEFINE_enum("format", "png", ["png", "npz"], "One image file each, or one npz.")
    flags.DEFINE_integer("seed", 0, "Of all noise.")
    flags.DEFINE_integer("batch_size", 64, "Images at a time, over all devices.", lower_bound=1)
    flags.DEFINE_list("step", None, "Checkpoint step; the last if left out. One for each stage may be given.")
    for name, (_, text) in _SAMPLING_FLAGS.items():
        flags.DEFINE_list(name, None, f"{text} The run's own if left out.")


def sampling_flags(values: Mapping[str, Sequence[str] | None]) -> dict[str, list[Any]]:
    """Fields of `Sampling` from the text of their flags."""
    fields = {}
    for name, (parse, _) in _SAMPLING_FLAGS.items():
        if values.get(name) is not None:
            fields[name] = [_parse(name, parse, text) for text in values[name]]
    return fields


def _parse(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text.strip())
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--{name}: cannot read {text!r}") from error


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without --config.FIELD=VALUE, and those fields with their values as Python literals or text."""
    kept, overrides = [], {}
    for argument in argv:
        if not argument.startswith("--config."):
            kept.append(argument)
            continue
        field, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            raise ConfigError(f"{argument}: write --config.FIELD=VALUE")
        try:
            overrides[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[field] = text
    return kept, overrides


def main(argv: Sequence[str]) -> int:
    """The program; 0, or 2 after one line on stderr about what is wrong."""
    logging.set_verbosity(logging.INFO)
    values = flags.FLAGS.flag_values_dict()
    try:
        kept, overrides = split_overrides(argv[1:])
        if kept:
            raise ConfigError(f"unknown argument {kept[0]!r}; see --help")
        checkpoints = [_parse("step", int, text) for text in values["step"] or []] or [None]
        grid = run(
            Options(
                workdirs=values["workdir"],
                checkpoints=checkpoints,
                sampling=sampling_flags(values),
                overrides=overrides,
                **{name: values[name] for name in ("out", "num", "labels", "input", "format", "seed", "batch_size")},
            )
        )
    except DiffusionError as error:
        print(f"sample: {error}", file=sys.stderr)
        return 2
    print(grid)
    return 0


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Absl's flags, with --config.FIELD=VALUE passed over for `main`."""
    overrides = [argument for argument in argv[1:] if argument.startswith("--config.")]
    rest = flags.FLAGS([argument for argument in argv if argument not in overrides])
    return [*rest, *overrides]


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=_parse_flags)
