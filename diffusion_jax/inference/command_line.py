"""What the programs that work on trained runs have in common: flags, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from diffusion_jax import interrupts, manual, processes, programs
from diffusion_jax.errors import ConfigError, DiffusionError, check_choice
from diffusion_jax.files import user_path, user_paths
from diffusion_jax.inference import requests
from diffusion_jax.registry import known
from diffusion_jax.training import config as configs
from diffusion_jax.training import imports
from diffusion_jax.training.mesh import AXES
from diffusion_jax.training.recipes import split_overrides

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_SAMPLING: dict[str, tuple[Callable[[str], Any], str]] = {
    "solver": (str, f"Solver: {', '.join(known('solver'))}."),
    "grid": (str, f"Time grid: {', '.join(known('grid'))}."),
    "steps": (int, "Steps of the solver."),
    "guidance": (float, "Classifier-free guidance scale; 1 is none."),
    "guidance_weight": (float, "The same scale as w in (1 + w) cond - w null: guidance = 1 + w; 0 is none."),
    "classifier_scale": (float, "Of a classifier's gradient, with --classifier; 0 is none."),
    "threshold": (str, "Of the predicted image: none, static or dynamic."),
    "weights": (str, "Parameters: ema, raw, or the label of an average."),
    "aug_level": (float, "Super-resolution: noise level in [0, 1] put on the low-resolution image."),
    "truncated": (
        lambda text: _TRUTH[text.lower()],
        "Cascade: stop the chain of the stage before at the augmentation level, instead of noising its image.",
    ),
}


def define_run_flags(*, sweep: bool = False) -> None:
    """The flags that say which runs to load and how to sample them.

    Args:
      sweep: whether a setting may have several values, to go through.
    """
    with manual.group("Which runs"):
        flags.DEFINE_list("workdir", None, "Trained run; several, comma-separated, are a cascade's stages.")
        flags.DEFINE_string(
            "classifier", None, "Run of a noisy classifier, whose gradient guides the samples (of a cascade, its first stage)."
        )
    several = "; several, comma-separated, are gone through" if sweep else ""
    with manual.group(f"How samples are drawn (for all stages, or for each as in A/B; as the run says if left out{several})"):
        for name, (_, text) in _SAMPLING.items():
            flags.DEFINE_list(name, None, text)
    programs.define_process_flags()
    with manual.group(programs.SEVERAL_HOSTS):
        flags.DEFINE_list("mesh", None, "Devices by axis, such as data=2,fsdp=4; if left out the run's own, or all for data.")


def define_conditioning_flags(leave_out: Sequence[str] = ()) -> None:
    """Define the flags of all registered conditioners: what samples are conditioned on.

    Args:
      leave_out: names that the program has for something else.
    """
    with manual.group("What samples are conditioned on"):
        for name, flag in requests.flags().items():
            if name not in leave_out:
                flags.DEFINE_string(name, None, flag.help)


def conditioning(values: Mapping[str, Any], leave_out: Sequence[str] = ()) -> dict[str, str]:
    """Return the conditioners' flags that were given, and their values, with ~ expanded in paths."""
    names = (name for name in requests.flags() if name not in leave_out and values.get(name) is not None)
    return {name: str(user_path(values[name])) if values[name].startswith("~") else values[name] for name in names}


def mesh_of(values: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the sizes of the mesh that --mesh gives; None without it.

    >>> mesh_of({"mesh": ["data=2", "fsdp=4"]})
    {'data': 2, 'fsdp': 4}

    Raises:
      ConfigError: an unknown axis, or no number.
    """
    if values["mesh"] is None:
        return None
    sizes = {}
    for part in values["mesh"]:
        axis, _, size = part.partition("=")
        check_choice("--mesh", axis, AXES)
        sizes[axis] = _parse("mesh", int, size)
    return sizes


def define_feature_flags() -> None:
    """The flags that say which network makes features."""
    with manual.group("The network of features"):
        _define_feature_flags()


def _define_feature_flags() -> None:
    flags.DEFINE_enum(
        "features", "small", ["small", "inception", "dinov2", "vgg16", "clip"],
        "Network: small is a classifier trained on the data; the others need --features_file.",
    )  # fmt: skip
    flags.DEFINE_string(
        "features_file", None, "File of the network's weights (safetensors; pth and pkl with the extra parity)."
    )
    flags.DEFINE_string("preprocessing", None, "How images are resized and scaled; the network's usual way if left out.")
    flags.DEFINE_string("features_variant", None, "Of dinov2 (vit_l14) or clip (vit_b32).")
    flags.DEFINE_string("features_sha256", None, "Checksum of the file, or its first digits; compared if given.")


def features_of(values: Mapping[str, Any]) -> Any:
    """The configuration of the network that the flags name; "small" stands for the classifier of the data.

    Raises:
      ConfigError: a network without its file, or the other way round.
    """
    fields = {
        "weights": values["features_file"],
        "preprocessing": values["preprocessing"],
        "variant": values["features_variant"],
        "sha256": values["features_sha256"],
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if values["features"] == "small":
        if given:
            raise ConfigError(f"--features=small takes no {', '.join(given)}: name the network with --features")
        return "small"
    if "weights" not in given:
        raise ConfigError(f"--features={values['features']} needs --features_file=FILE: weights are never downloaded")
    return {"name": values["features"], **given}


def sweep_of(values: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """For each setting that a flag gives, its values, each for all stages or one for each.

    Raises:
      ConfigError: a value that cannot be read.
    """
    found: dict[str, list[list[Any]]] = {
        name: [[_parse(name, parse, part) for part in text.split("/")] for text in values[name]]
        for name, (parse, _) in _SAMPLING.items()
        if values[name] is not None
    }
    return found | ({"classifier": [[values["classifier"]]]} if values["classifier"] is not None else {})


def run_options(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `runs.find` from the values of flags.

    Raises:
      ConfigError: no workdir, a value that cannot be read, or several of one setting.
    """
    if not values["workdir"]:
        raise ConfigError("--workdir=DIR is needed: the directory of a trained run")
    sampling = {}
    for name, given in sweep_of(values).items():
        if len(given) != 1:
            text = ",".join(values[name])
            raise ConfigError(f"--{name}={text}: one value is needed; for stages of a cascade, {text.replace(',', '/')}")
        sampling[name] = given[0]
    checkpoints = [_parse("step", int, text) for text in (values["step"] or "").split("/") if text] or [None]
    return {
        "workdirs": values["workdir"],
        "checkpoints": checkpoints,
        "sampling": sampling,
        "overrides": dict(overrides),
        "mesh": mesh_of(values),
    }


def _parse(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text.strip())
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--{name}: cannot read {text!r}") from error


def run_program(
    name: str, define_flags: Callable[[], None], work: Callable[[Mapping[str, Any], Mapping[str, Any]], str]
) -> None:
    """Run a program and exit: with 0, with 2 after one line on stderr that says what is wrong, or with 130 after Ctrl-C.

    Args:
      define_flags: defines the program's flags, once the parts of their own that runs on the command line import are there.
      work: (values of all flags, overrides of the configuration) -> what to print at the end, by the first process.
    """

    def fail(error: DiffusionError | str) -> int:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise ConfigError(f"unknown argument {argv[1]!r}; see --help")
        programs.configure_logging()
        programs.keep_compiled()
        values = user_paths(flags.FLAGS.flag_values_dict())
        programs.join_processes(values, name)
        result = work(values, overrides)
        if processes.is_first():
            sys.stdout.write(f"{result}\n")

    with programs.answering(name):
        interrupts.watch(name)
        argv, overrides = split_overrides(sys.argv)
        _import_parts(argv)
        with manual.group("Options"):
            define_flags()
        with manual.group("The configuration, and parts of your own"):
            flags.DEFINE_list("import", [], "Modules and .py files that register parts, beside what runs and recipes import.")
        if manual.is_asked_for(argv):
            sys.stdout.write(manual.text())
            return
        app.run(main, argv=argv, flags_parser=programs.flags_parser(fail))


def _import_parts(argv: Sequence[str]) -> None:
    """Import what a command line names, and what its runs do, so that parts of a person's own have their flags."""
    imports.add(name for text in _given(argv, "import") for name in text.split(",") if name)
    for workdir in (user_path(part) for text in _given(argv, "workdir") for part in text.split(",")):
        if (workdir / "config.json").exists():
            configs.read(workdir)  # imports what the run does


def _given(argv: Sequence[str], flag: str) -> list[str]:
    """The values of a flag on a command line, before flags are defined."""
    dashed = (f"-{flag}", f"--{flag}")
    joined = [argument.partition("=")[2] for argument in argv if argument.partition("=")[0] in dashed and "=" in argument]
    return joined + [value for name, value in zip(argv, argv[1:], strict=False) if name in dashed]
