"""What the programs that work on trained runs have in common: flags, and errors as one line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags, logging

from diffusion_jax.errors import ConfigError, DiffusionError

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


def parse_flags(argv: Sequence[str]) -> list[str]:
    """For `app.run`: absl's flags, with --config.FIELD=VALUE left in place for `program`."""
    overrides = [argument for argument in argv[1:] if argument.startswith("--config.")]
    rest = flags.FLAGS([argument for argument in argv if argument not in overrides])
    return [*rest, *overrides]


def read_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Fields from --config.FIELD=VALUE; values are Python literals, or text.

    >>> read_overrides(["--config.sampling.steps=5", "--config.sampling.solver=heun"])
    {'sampling.steps': 5, 'sampling.solver': 'heun'}
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        field, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise ConfigError(f"unknown argument {argument!r}; see --help (--config.FIELD=VALUE replaces a field)")
        try:
            overrides[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[field] = text
    return overrides


def program(name: str, work: Callable[[Mapping[str, Any], Mapping[str, Any]], str]) -> Callable[[Sequence[str]], int]:
    """A main function for `app.run`: 0, or 2 after one line on stderr that says what is wrong.

    Args:
      work: (values of all flags, overrides of the configuration) -> what to print at the end.
    """

    def main(argv: Sequence[str]) -> int:
        logging.set_verbosity(logging.INFO)
        try:
            result = work(flags.FLAGS.flag_values_dict(), read_overrides(argv[1:]))
        except DiffusionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        print(result)
        return 0

    return main
