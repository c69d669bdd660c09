"""Bring published weights in as a run, which sample, evaluate and train take up at once; and take a run's weights out.

    python -m diffusion_jax.convert --layout=guided_diffusion --weights=FILE --config=configs/adm.py:64 --workdir=DIR \\
        --config.data.source.path=IMAGES
    python -m diffusion_jax.sample --workdir=DIR --num=16 --out=DIR2
    python -m diffusion_jax.train --config=DIR/config.json --workdir=DIR      # fine-tunes

Layouts: guided_diffusion (ADM's U-Nets and upsamplers), improved_diffusion (improved DDPM), diffusers (UNet2DModel), edm
(DDPM++, NCSN++ and ADM as EDM trains them), and those that --help lists beside them. Files: .safetensors; .pt, .pth, .bin
and .pkl with the extra parity, read without running what is in them.

The recipe says what the network is, how it was trained and how it is sampled; any field is replaced by
--config.FIELD=VALUE. Every tensor of the file must find its place in that network and every parameter its tensor: what is
missing, left over or of another shape is listed, and nothing is written. Data need not be there yet, but evaluate and train
look for them where the recipe says: say it here, since a run's data cannot be changed.

For diffusers, --weights is the folder with config.json and the weights, or a file beside config.json; config.json then
says what the network is, in place of the recipe.

The directory holds the configuration and one checkpoint, of step 0 or --step: raw weights from --weights, averages from
--ema or the same. A directory with a run in it is refused.

The other way, in a layout that lists every tensor:

    python -m diffusion_jax.convert --layout=diffusers --workdir=DIR --export=FILE.safetensors

Exit status: 0, or 2 after one line that says what is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.inference import command_line
from diffusion_jax.inference.run import Run
from diffusion_jax.interop import diffusers, diffusers_config, edm, guided_diffusion
from diffusion_jax.interop.layouts import Layout
from diffusion_jax.registry import build, known
from diffusion_jax.training.given_weights import check_empty, start_run, system_of
from diffusion_jax.training.recipes import load_recipe

_LOG = logging.getLogger(__name__)
_NEW_ORDER = ("unet_adm64",)  # networks whose published checkpoint has the new order of attention heads


@dataclasses.dataclass(frozen=True)
class Options:
    """What is read and where it goes; see the flags' help."""

    layout: str
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
    if not options.weights or not options.config:
        raise ConfigError("--weights=FILE and --config=RECIPE are needed (or --export=FILE to take weights out of a run)")
    if options.average != "ema":
        raise ConfigError(f"--average={options.average} says what --export writes: leave it out where weights are brought in")
    check_empty(options.workdir)
    config = load_recipe(options.config, dict(overrides or {}))
    weights, ema, layout = _opened(options, config)
    system = system_of(config)
    params = layout.read(weights, system.network)
    averaged = layout.read(ema, system.network) if ema else None
    start_run(config, options.workdir, params, averaged, options.step or 0)
    _LOG.info("%s parameters of %s are in %s.", f"{system.network.num_params():,}", weights, options.workdir)
    _LOG.info("To train on: --config=%s --workdir=%s.", Path(options.workdir) / "config.json", options.workdir)
    return Path(options.workdir)


def _opened(options: Options, config: dict[str, Any]) -> tuple[Any, Any, Layout]:
    """(weight file, file of averages, layout); what the files say of the network themselves is put into the recipe."""
    weights, ema, system = options.weights, options.ema, config["system"]
    if options.layout == diffusers.Diffusers.name:
        weights, given = diffusers_config.open_checkpoint(weights)
        ema = diffusers_config.open_checkpoint(ema)[0] if ema else None
        system["network"] = diffusers_config.over_recipe(config, given)
        return weights, ema, diffusers.Diffusers.of_config(given)
    if options.layout == edm.Edm.name:
        with contextlib.suppress(DataError):  # most of its networks have none
            network, frequencies = system["network"], list(edm.frequencies(weights))
            system["network"] = {**({"name": network} if isinstance(network, str) else network), "frequencies": frequencies}
    return weights, ema, _layout(options, config)


def export(options: Options, overrides: Mapping[str, Any] | None = None) -> Path:
    """Write a run's weights as a safetensors file in another library's layout, and return its path.

    Raises:
      DiffusionError: no such run, step or average; a network that the layout has no names for.
    """
    unused = [flag for flag in ("weights", "config", "ema") if getattr(options, flag)]
    unused += [f"config.{field}" for field in overrides or {}]
    if unused:
        raise ConfigError(f"--export takes weights out of the run in --workdir: leave out --{', --'.join(unused)}")
    run = Run(options.workdir)
    params = run.params(options.step, options.average)
    layout = _layout(options, run.config)
    system_of(run.config)
    layout.write(options.export, params["network"], run.system.network)
    return Path(options.export)


def _layout(options: Options, config: Mapping[str, Any]) -> Layout:
    """The layout of the flags, with the order of attention heads that the recipe's network was published with."""
    fields = {}
    if options.layout == guided_diffusion.GuidedDiffusion.name:
        network = config["system"].get("network", {})
        name = network if isinstance(network, str) else network.get("name")
        fields["attention_order"] = options.attention_order or ("new" if name in _NEW_ORDER else "legacy")
        _LOG.info("Attention heads are read in the %s order; --attention_order says otherwise.", fields["attention_order"])
    elif options.attention_order:
        raise ConfigError(f"--attention_order is for layout 'guided_diffusion', not {options.layout!r}")
    return build("layout", {"name": options.layout, **fields})


def define_flags() -> None:
    """Define the program's flags."""
    flags.DEFINE_string("layout", None, f"How the file names its tensors: {', '.join(known('layout'))}.", required=True)
    flags.DEFINE_string("weights", None, "File of the weights; for diffusers also its folder.")
    flags.DEFINE_string("ema", None, "File of the averaged weights, if they are apart; the same weights if left out.")
    flags.DEFINE_string("config", None, "The recipe, FILE.py or FILE.py:VARIANT; --config.FIELD=VALUE overrides.")
    flags.DEFINE_string("workdir", None, "The run's directory: new, or with --export one that exists.", required=True)
    flags.DEFINE_integer("step", None, "Of the checkpoint that is written (0) or exported (the newest).", lower_bound=0)
    flags.DEFINE_enum("attention_order", None, ["legacy", "new"], "Of guided_diffusion; ADM's for ImageNet 64x64 is new.")
    flags.DEFINE_string("export", None, "Write the run's weights to this .safetensors file instead.")
    flags.DEFINE_string("average", "ema", "What --export writes: ema, raw, or the label of an average.")


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    options = Options(**{field.name: values[field.name] for field in dataclasses.fields(Options)})
    return str(export(options, overrides) if options.export else convert(options, overrides))


if __name__ == "__main__":
    command_line.run_program("convert", define_flags, _work)
