"""What the programs that work on trained runs have in common: flags, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from diffusion_jax.errors import ConfigError, DiffusionError
from diffusion_jax.training.recipes import split_overrides

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_SAMPLING: dict[str, tuple[Callable[[str], Any], str]] = {
    "solver": (str, "Solver: ddpm, ddim, euler, heun or dpmpp_2m."),
    "grid": (str, "Time grid: uniform, trailing, leading, quadratic or karras."),
    "steps": (int, "Steps of the solver."),
    "guidance": (float, "Classifier-free guidance scale; 1 is none."),
    "threshold": (str, "Of the predicted image: none, static or dynamic."),
    "weights": (str, "Parameters: ema or raw."),
    "aug_level": (float, "Super-resolution: noise level in [0, 1] put on the low-resolution image."),
    "truncated": (
        lambda text: _TRUTH[text.lower()],
        "Cascade: stop the chain of the stage before at the augmentation level, instead of noising its image.",
    ),
}


def define_run_flags() -> None:
    """The flags that say which runs to load and how to sample them."""
    flags.DEFINE_list("workdir", None, "Trained run; several, comma-separated, are a cascade's stages.", required=True)
    flags.DEFINE_list("step", None, "Checkpoint step, for all stages or one for each; the newest if left out.")
    for name, (_, text) in _SAMPLING.items():
        flags.DEFINE_list(name, None, f"{text} For all stages, or one for each; the run's own if left out.")


def run_options(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `runs.find` from the values of flags.

    Raises:
      ConfigError: a value that cannot be read.
    """
    sampling = {
        name: [_parse(name, parse, text) for text in values[name]]
        for name, (parse, _) in _SAMPLING.items()
        if values[name] is not None
    }
    checkpoints = [_parse("step", int, text) for text in values["step"] or []] or [None]
    return {
        "workdirs": values["workdir"],
        "checkpoints": checkpoints,
        "sampling": sampling,
        "overrides": dict(overrides),
    }


def _parse(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text.strip())
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--{name}: cannot read {text!r}") from error


def run_program(name: str, work: Callable[[Mapping[str, Any], Mapping[str, Any]], str]) -> None:
    """Run a program and exit: with 0, or with 2 after one line on stderr that says what is wrong.

    Args:
      work: (values of all flags, overrides of the configuration) -> what to print at the end.
    """

    def fail(error: DiffusionError) -> int:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2

    def main(argv: Sequence[str]) -> int:
        if len(argv) > 1:
            return fail(ConfigError(f"unknown argument {argv[1]!r}; see --help"))
        try:
            result = work(flags.FLAGS.flag_values_dict(), overrides)
        except DiffusionError as error:
            return fail(error)
        sys.stdout.write(f"{result}\n")
        return 0

    try:
        argv, overrides = split_overrides(sys.argv)
    except ConfigError as error:
        sys.exit(fail(error))
    app.run(main, argv=argv)
