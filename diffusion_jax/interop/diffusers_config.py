"""The config.json beside diffusers' UNet2DModel: which of this library's networks it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.files import read_json, user_path
from diffusion_jax.interop import layers
from diffusion_jax.models.network import Network
from diffusion_jax.spec import size_of
from diffusion_jax.values import Count, Natural, Positive, Probability, check

DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "center_input_sample": False, "time_embedding_type": "positional",
    "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2D", "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2,
    "mid_block_scale_factor": 1, "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv",
    "dropout": 0.0, "act_fn": "silu", "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None,
    "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None,
    "num_class_embeds": None,
}  # fmt: skip
"""Of UNet2DModel: what a config.json leaves out."""

# What is fixed here: field -> the values that mean the same.
_FIXED = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,), "act_fn": ("silu", "swish"), "add_attention": (True,), "class_embed_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"), "freq_shift": (0, 1), "downsample_padding": (0, 1),
}  # fmt: skip

# What the other fields hold.
_KINDS: dict[str, Any] = {
    "in_channels": Count, "out_channels": Count, "flip_sin_to_cos": bool, "time_embedding_dim": Count | None,
    "block_out_channels": Sequence[Count], "layers_per_block": Count, "down_block_types": Sequence[str],
    "up_block_types": Sequence[str], "downsample_type": str, "upsample_type": str, "dropout": Probability,
    "attention_head_dim": Count | None, "norm_num_groups": Count, "attn_norm_num_groups": Count | None,
    "norm_eps": Positive, "num_class_embeds": Natural | None,
}  # fmt: skip

# Block types: (attention follows each block, how they resample; None where downsample_type and upsample_type say it)
_DOWN = {"DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, "resblock")}
_UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "resblock")}
_RESAMPLING = {"conv": "conv", "resnet": "resblock"}


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a config.json.

    Raises:
      DataError: it is missing, or no JSON object.
      ConfigError: it describes another class than UNet2DModel.
    """
    config = read_json(Path(path), "the configuration of a network", mend="layout 'diffusers' needs it beside the weights")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ConfigError(f"{path} describes a {config['_class_name']}; layout 'diffusers' reads UNet2DModel")
    return config


def network_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `models.unet` for a UNet2DModel's configuration.

    Args:
      config: as in config.json; what it leaves out has UNet2DModel's defaults.

    Raises:
      ConfigError: what this U-Net does not have; the field is named.
    """
    given = {**DEFAULTS, **{key: value for key, value in config.items() if value is not None or key in _NULLABLE}}
    for field, values in _FIXED.items():
        if given[field] not in values:
            known = " or ".join(map(repr, values))
            raise ConfigError(f"config.json: {field}={given[field]!r} has no counterpart here, only {known}")
    for field, kind in _KINDS.items():
        check(f"config.json: {field}", kind, given[field])
    size = given.get("sample_size")
    shorter = min(size_of(size, "config.json: sample_size"))
    widths = list(given["block_out_channels"])
    if not widths:
        raise ConfigError("config.json: block_out_channels is empty")
    if given["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise ConfigError(
            f"config.json: time_embedding_dim={given['time_embedding_dim']}, but only {4 * widths[0]} is known here"
        )
    attends, resample = _levels(given, len(widths))
    heads = given["attention_head_dim"]
    _check_groups(given)
    return {
        "image_size": size,
        "in_channels": given["in_channels"],
        "out_channels": given["out_channels"],
        "channels": widths[0],
        "multipliers": tuple(width / widths[0] for width in widths),
        "num_res_blocks": given["layers_per_block"],
        "attention_resolutions": tuple(shorter // 2**level for level, attend in enumerate(attends) if attend),
        "num_heads": 1,
        "head_channels": heads,
        "conditioning": "adagn" if given["resnet_time_scale_shift"] == "scale_shift" else "additive",
        "resample": resample,
        "embedding": "ddpm" if given["freq_shift"] == 1 else "adm",
        "num_classes": given["num_class_embeds"] or 0,
        "dropout": given["dropout"],
        "groups": given["norm_num_groups"],
        "norm_epsilon": given["norm_eps"],
        "down_padding": "same" if given["downsample_padding"] == 0 else "symmetric",
    }


def of_network(network: Network, cosine_first: bool) -> dict[str, Any]:
    """Return the configuration with which UNet2DModel is a network of `models.unet`: the inverse of `network_fields`.

    Args:
      cosine_first: the order of the sinusoidal embedding there, see `diffusers.Diffusers`.

    Raises:
      ConfigError: a field that UNet2DModel does not have.
    """
    module, layout = layers.unet_of(network, "diffusers"), "diffusers"
    layers.check_expressible(layout, network, {"label"}, {"skip_scale": 1.0})
    levels = layers.levels(module)
    widths = [round(module.channels * multiplier) for multiplier in module.multipliers]
    if widths[0] != module.channels:
        raise ConfigError(f"layout {layout!r} has networks whose first multiplier is 1 only, not {module.multipliers[0]:g}")
    attending = [level.attends or level.last for level in levels]
    lengths = [width // level.heads for width, level, attends in zip(widths, levels, attending, strict=True) if attends]
    single = all(level.heads == 1 for level, attends in zip(levels, attending, strict=True) if attends)
    adaptive, blockwise = module.conditioning == "adagn", module.resample == "resblock"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if blockwise else ("DownBlock2D", "UpBlock2D")
    way = "resnet" if blockwise else "conv"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": module.image_size[0] if len(set(module.image_size)) == 1 else list(module.image_size),
        "in_channels": network.spec.channels,
        "out_channels": module.out_channels,
        "block_out_channels": widths,
        "layers_per_block": layers.one_for_all(layout, "num_res_blocks", module.num_res_blocks),
        "down_block_types": ["AttnDownBlock2D" if level.attends else plain[0] for level in levels],
        "up_block_types": ["AttnUpBlock2D" if level.attends else plain[1] for level in reversed(levels)],
        "downsample_type": way,
        "upsample_type": way,
        "downsample_padding": 0 if module.down_padding == "same" else 1,
        "attention_head_dim": None if single else layers.one_for_all(layout, "width of attention heads", lengths),
        "resnet_time_scale_shift": "scale_shift" if adaptive else "default",
        "norm_num_groups": module.groups,
        "attn_norm_num_groups": module.groups if adaptive else None,
        "norm_eps": module.norm_epsilon,
        "freq_shift": 1 if module.embedding == "ddpm" else 0,
        "flip_sin_to_cos": cosine_first,
        "num_class_embeds": module.label_table or None,
        "dropout": module.dropout,
    }


_NULLABLE = ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds", "class_embed_type", "time_embedding_dim")


def _levels(config: Mapping[str, Any], count: int) -> tuple[list[bool], str]:
    """Which levels have attention, and how all of them resample."""
    down, up = config["down_block_types"], list(reversed(config["up_block_types"]))
    if not len(down) == len(up) == count:
        raise ConfigError(f"config.json: {count} block_out_channels, {len(down)} down_block_types, {len(up)} up_block_types")
    for name, known in [*((name, _DOWN) for name in down), *((name, _UP) for name in up)]:
        if name not in known:
            raise ConfigError(f"config.json: no block {name!r} here (known: {', '.join(known)})")
    attends = [_DOWN[name][0] for name in down]
    if attends != [_UP[name][0] for name in up]:
        raise ConfigError(f"config.json: attention on the way down {down} and up {up} must be at the same levels")
    ways = {_DOWN[name][1] or _RESAMPLING.get(config["downsample_type"]) for name in down[:-1]}
    ways |= {_UP[name][1] or _RESAMPLING.get(config["upsample_type"]) for name in up[1:]}
    if len(ways) > 1 or None in ways:
        raise ConfigError(
            f"config.json: all levels must resample alike, by convolution or by residual blocks, not {down} and {up} with "
            f"downsample_type={config['downsample_type']!r}, upsample_type={config['upsample_type']!r}"
        )
    return attends, ways.pop() if ways else "conv"


def _check_groups(config: Mapping[str, Any]) -> None:
    """The middle attention has groups of its own there; without them and with scale_shift it is not normalised at all."""
    groups = config["attn_norm_num_groups"]
    if groups is None and config["resnet_time_scale_shift"] == "default":
        groups = config["norm_num_groups"]
    if groups != config["norm_num_groups"]:
        raise ConfigError(
            f"config.json: attn_norm_num_groups={config['attn_norm_num_groups']!r} with resnet_time_scale_shift="
            f"{config['resnet_time_scale_shift']!r} has no counterpart here; norm_num_groups ({config['norm_num_groups']}) has"
        )


# Folders --------------------------------------------------------------------------------------------------------------

_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_KEPT = ("remat", "dtype", "dropout")  # fields of the recipe's network that say how it runs, not what it is


def open_checkpoint(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find (the weight file, the configuration beside it) of a model's folder, a pipeline's folder, or a file.

    Raises:
      DataError: there is no weight file, or no config.json.
      ConfigError: see `read_config`.
    """
    path = user_path(path)
    if path.is_dir():
        folder = path / "unet" if (path / "unet").is_dir() else path
        found = [folder / name for name in _FILES if (folder / name).is_file()]
        if not found:
            raise DataError(f"{folder} holds neither {' nor '.join(_FILES)}; name the file with --weights=FILE")
        path = found[0]
    return path, read_config(path.parent / "config.json")


def over_recipe(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's network as a model's configuration says it is.

    What the recipe says about how the network runs (dropout, remat, dtype) stays; image size, channels and classes follow
    from the rest of the recipe, and must agree.

    Raises:
      ConfigError: the recipe is of another image size or number of channels or classes; see also `network_fields`.
    """
    fields = network_fields(config)
    size, data = fields.pop("image_size"), recipe["data"]
    classes, channels = fields.pop("num_classes"), fields.pop("in_channels")
    if (size_of(size), channels) != (size_of(data.get("image_size")), data.get("channels", 3)):
        raise ConfigError(
            f"the weights are of a network for images of {size} pixels and {channels} channels, the recipe's are of "
            f"{data.get('image_size')} and {data.get('channels', 3)}: name another recipe, or set "
            f"--config.data.image_size={size} and --config.data.channels={channels}"
        )
    system = recipe["system"]
    labels = system.get("conditioners", {}).get("labels") or {}
    rows = labels.get("num_classes", 0)
    rows += bool(rows) and labels.get("drop", 0.1) > 0
    if rows != classes:
        raise ConfigError(
            f"the weights have {classes or 'no'} class embeddings, the recipe's system has {rows or 'none'}: set "
            "--config.system.conditioners.labels.num_classes, and --config.system.conditioners.labels.drop=0 where no row "
            "stands for 'no class'"
        )
    own = system.get("network", {})
    kept = {field: own[field] for field in _KEPT if not isinstance(own, str) and field in own}
    del fields["out_channels"]  # from the process; that the weights have as many is checked with their shapes
    return {"name": "unet", **{key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}, **kept}
