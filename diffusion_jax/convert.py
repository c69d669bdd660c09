"""Bring published weights in as a run, which sample, evaluate and train take up at once; and take a run's weights out.

    python -m diffusion_jax.convert --layout=guided_diffusion --weights=FILE --config=configs/adm.py:64 --workdir=DIR \\
        --config.data.source.path=IMAGES
    python -m diffusion_jax.sample --workdir=DIR --num=16 --out=DIR2
    python -m diffusion_jax.train --config=DIR/config.json --workdir=DIR      # fine-tunes

Layouts: guided_diffusion (ADM's U-Nets and upsamplers), improved_diffusion (improved DDPM), diffusers (UNet2DModel), edm
(DDPM++, NCSN++ and ADM as EDM trains them), edm2, and those that --help lists beside them. Files: .safetensors; .pt, .pth,
.bin and .pkl with the extra parity, read without running what is in them. Weights that are NaN or infinite are refused.

The recipe says what the network is, how it was trained and how it is sampled; any field is replaced by
--config.FIELD=VALUE. Every tensor of the file must find its place in that network and every parameter its tensor: what is
missing, left over or of another shape is listed, and nothing is written. Data need not be there yet, but evaluate and train
look for them where the recipe says: say it here, since a run's data cannot be changed.

For diffusers, --weights is the folder with config.json and the weights, or a file beside config.json; config.json then
says what the network is, in place of the recipe.

The directory holds the configuration and one checkpoint, of step 0 or --step: raw weights from --weights, averages from
--ema or the same. A directory with a run in it is refused.

The other way, into a folder that diffusers' UNet2DModel.from_pretrained opens, or a file:

    python -m diffusion_jax.convert --layout=diffusers --workdir=DIR --export=FOLDER

What the other library builds the network from is in config.json beside the weights; what it does not have is refused. A
run remembers the layout that its weights came in (weights.json): --layout may then be left out. No file is overwritten.

Exit status: 0, or 2 after one line that says what is wrong.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.files import read_json, user_path, write_json
from diffusion_jax.inference import command_line
from diffusion_jax.inference.run import Run
from diffusion_jax.interop import diffusers, diffusers_config, edm, edm2, guided_diffusion  # noqa: F401  by name
from diffusion_jax.interop.layouts import Layout
from diffusion_jax.interop.tensors import sha256
from diffusion_jax.registry import build, known
from diffusion_jax.training.given_weights import check_empty, start_run, system_of
from diffusion_jax.training.recipes import load_recipe

_LOG = logging.getLogger("diffusion_jax.convert")
_RECORD = "weights.json"
_NEW_ORDER = ("unet_adm64",)  # networks whose published checkpoint has the new order of attention heads


@dataclasses.dataclass(frozen=True)
class Options:
    """What is read and where it goes; see the flags' help."""

    layout: str | None
    workdir: str
    weights: str | None = None
    config: str | None = None
    ema: str | None = None
    step: int | None = None
    attention_order: str | None = None
    export: str | None = None
    average: str = "ema"


def convert(options: Options, overrides: Mapping[str, Any] | None = None) -> Path:
    """Write a run's directory with weights from elsewhere, and return it.

    Raises:
      DiffusionError: bad options, a directory in use, an unreadable file, weights of another network; nothing is written.
    """
    lacking = [f"--{flag}" for flag in ("layout", "weights", "config") if not getattr(options, flag)]
    if lacking:
        raise ConfigError(f"{', '.join(lacking)}: needed to bring weights in (--export=FILE takes them out of a run)")
    if options.average != "ema":
        raise ConfigError(f"--average={options.average} says what --export writes: leave it out where weights are brought in")
    workdir = user_path(options.workdir)
    check_empty(workdir)
    config = load_recipe(options.config, dict(overrides or {}))
    weights, ema, layout = _opened(options, config)
    system = system_of(config)
    params = layout.read(weights, system.network)
    averaged = layout.read(ema, system.network) if ema else None
    start_run(config, workdir, params, averaged, options.step or 0)
    write_json(workdir / _RECORD, {"layout": _described(layout), "weights": str(weights), "sha256": sha256(weights)})
    _LOG.info("%s parameters of %s are in %s.", f"{system.network.num_params():,}", weights, workdir)
    _LOG.info("To train on: --config=%s --workdir=%s.", workdir / "config.json", workdir)
    return workdir


def _opened(options: Options, config: dict[str, Any]) -> tuple[Path, Path | None, Layout]:
    """(weight file, file of averages, layout); what the files say of the network themselves is put into the recipe."""
    weights, ema, system = user_path(options.weights), options.ema and user_path(options.ema), config["system"]
    if options.layout == diffusers.Diffusers.name:
        weights, given = diffusers_config.open_checkpoint(weights)
        ema = diffusers_config.open_checkpoint(ema)[0] if ema else None
        system["network"] = diffusers_config.over_recipe(config, given)
        return weights, ema, diffusers.Diffusers.of_config(given)
    layout = _layout(options, config, {})
    if fields := layout.fields_in(weights):
        network = system["network"]
        system["network"] = {**({"name": network} if isinstance(network, str) else network), **fields}
    return weights, ema, layout


def export(options: Options, overrides: Mapping[str, Any] | None = None) -> Path:
    """Write a run's weights as a safetensors file in another library's layout, config.json beside it, and return its path.

    Raises:
      DiffusionError: no such run, step or average; a network that the layout's library does not have; a path that is taken.
    """
    unused = [flag for flag in ("weights", "config", "ema") if getattr(options, flag)]
    unused += [f"config.{field}" for field in overrides or {}]
    if unused:
        raise ConfigError(f"--export takes weights out of the run in --workdir: leave out --{', --'.join(unused)}")
    run = Run(user_path(options.workdir))
    layout = _layout(options, run.config, _recorded(run.workdir))
    system_of(run.config)
    layout.check(options.export, run.system.network)
    params, step = run.load(options.step, options.average)
    path = layout.write(options.export, params["network"], run.system.network)
    _LOG.info("Weights (%s) of step %d are in %s, as %s.", options.average, step, path, _described(layout))
    return path


def _described(layout: Layout) -> dict[str, Any]:
    return {"name": layout.name, **(dataclasses.asdict(layout) if dataclasses.is_dataclass(layout) else {})}


def _recorded(workdir: str) -> dict[str, Any]:
    """The layout that a run's weights came in, as JSON data; {} of one that was trained here."""
    path = Path(workdir) / _RECORD
    if not path.exists():
        return {}
    check = lambda found: None if isinstance(found.get("layout"), dict) else "it names no layout"  # noqa: E731
    what = "the record of where the run's weights came from"
    return read_json(path, what, check=check, mend="restore it, or remove it and name --layout", error=CheckpointError)[
        "layout"
    ]


def _layout(options: Options, config: Mapping[str, Any], recorded: Mapping[str, Any]) -> Layout:
    """The layout of the flags: as the run's weights came in it, or with the order of heads of the network as published."""
    name = options.layout or recorded.get("name")
    if not name:
        raise ConfigError(f"--layout is needed, one of {', '.join(known('layout'))}: the run was trained here")
    fields = {field: value for field, value in recorded.items() if name == recorded.get("name")}
    if name == guided_diffusion.GuidedDiffusion.name:
        network = config["system"].get("network", {})
        published = "new" if (network if isinstance(network, str) else network.get("name")) in _NEW_ORDER else "legacy"
        fields["attention_order"] = options.attention_order or fields.get("attention_order", published)
        _LOG.info("Attention heads are taken in the %s order; --attention_order says otherwise.", fields["attention_order"])
    elif options.attention_order:
        raise ConfigError(f"--attention_order is for layout 'guided_diffusion', not {name!r}")
    return build("layout", {**fields, "name": name})


def define_flags() -> None:
    """Define the program's flags."""
    layouts = ", ".join(known("layout"))
    flags.DEFINE_string("layout", None, f"How the file names its tensors: {layouts}; the run's own if left out at --export.")
    flags.DEFINE_string("weights", None, "File of the weights; for diffusers also its folder.")
    flags.DEFINE_string("ema", None, "File of the averaged weights, if they are apart; the same weights if left out.")
    flags.DEFINE_string("config", None, "The recipe, FILE.py or FILE.py:VARIANT; --config.FIELD=VALUE overrides.")
    flags.DEFINE_string("workdir", None, "The run's directory: new, or with --export one that exists.", required=True)
    flags.DEFINE_integer("step", None, "Of the checkpoint that is written (0) or exported (the newest).", lower_bound=0)
    flags.DEFINE_enum("attention_order", None, ["legacy", "new"], "Of guided_diffusion; ADM's for ImageNet 64x64 is new.")
    flags.DEFINE_string("export", None, "Write the run's weights to this .safetensors file, or into this folder, instead.")
    flags.DEFINE_string("average", "ema", "What --export writes: ema, raw, or the label of an average.")


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    options = Options(**{field.name: values[field.name] for field in dataclasses.fields(Options)})
    return str(export(options, overrides) if options.export else convert(options, overrides))


if __name__ == "__main__":
    command_line.run_program("convert", define_flags, _work)
