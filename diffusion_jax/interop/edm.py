"""Checkpoints of EDM: DDPM++ and NCSN++ (its SongUNet), and its ADM (DhariwalUNet).

Its releases are pickles of whole Python objects; `pickles` takes the tensors out of them and runs nothing. Source: Karras et
al. 2022 (arXiv 2206.00364) and its code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop import layers
from diffusion_jax.interop.convert import WeightMap, linear
from diffusion_jax.interop.layouts import Constant, Layout
from diffusion_jax.interop.tensors import read_tensors
from diffusion_jax.models.adm_unet import UNet
from diffusion_jax.models.network import Network
from diffusion_jax.models.score_sde_unet import SongUNet
from diffusion_jax.registry import register

_FREQUENCIES = "map_noise.freqs"
_LEVELS = "u"  # of improved DDPM's preconditioning, around the network

_RESIDUAL = {
    "norm0": (layers.norm, "norm_in"),
    "conv0": (layers.conv, "conv_in"),
    "affine": (layers.dense, "emb"),
    "norm1": (layers.norm, "norm_out"),
    "conv1": (layers.conv, "conv_out"),
    "skip": (layers.conv_1x1, "shortcut"),  # where the width changes, and in SongUNet where it resamples
}


def frequencies(path: str | Path) -> tuple[float, ...]:
    """Return the Fourier frequencies of an NCSN++ checkpoint, for `song_unet(frequencies=...)`.

    Raises:
      DataError: a file without them.
    """
    found = _bare(read_tensors(path)).get(_FREQUENCIES)
    if found is None:
        raise DataError(f"{path} has no {_FREQUENCIES}: it is no NCSN++ checkpoint of EDM, and needs no frequencies")
    return tuple(float(f) for f in found)


def _bare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the name of the preconditioning around the network."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def _pointwise(name: str, path: str, there: Any = lambda a: a, back: Any = lambda a: a) -> list[WeightMap]:
    """A 1x1 convolution that is a linear map here."""
    kernel = WeightMap(
        (f"{name}.weight",),
        (f"{path}/kernel",),
        lambda tensor: there(layers.pointwise(tensor)),
        lambda kernel: back(kernel).T[..., None, None],
    )
    return [kernel, WeightMap((f"{name}.bias",), (f"{path}/bias",), there, back)]


def _block(name: str, path: str, heads: int = 0) -> Iterator[WeightMap]:
    """A block is a residual one, with attention inside where it attends."""
    yield from layers.block(_RESIDUAL, name, f"{path}_res")
    if heads:
        yield from layers.norm(f"{name}.norm2", f"{path}_attn/norm")
        yield from _pointwise(f"{name}.qkv", f"{path}_attn/qkv", *layers.interleave_heads(heads))
        yield from _pointwise(f"{name}.proj", f"{path}_attn/out")


def _song(module: SongUNet) -> Iterator[WeightMap]:
    count, blocks = len(module.multipliers), module.num_res_blocks
    size = lambda level: "x".join(str(side >> level) for side in module.image_size)  # noqa: E731
    attends = lambda level: int(min(module.image_size) >> level in module.attention_resolutions)  # noqa: E731
    yield from layers.dense("map_label", "label_embedding")
    yield WeightMap(("map_augment.weight",), ("augment_embedding/kernel",), linear, linear)
    yield from _time_embedding()
    yield from layers.conv(f"enc.{size(0)}_conv", "stem")
    for level in range(count):
        if level:
            yield from layers.block(_RESIDUAL, f"enc.{size(level)}_down", f"down{level}_resample")
            yield from layers.conv(f"enc.{size(level)}_aux_residual", f"down{level}_pyramid")
        for i in range(blocks):
            yield from _block(f"enc.{size(level)}_block{i}", f"down{level}_{i}", attends(level))
    yield from _middle(size(count - 1), 1)
    for level in reversed(range(count)):
        if level < count - 1:
            yield from layers.block(_RESIDUAL, f"dec.{size(level)}_up", f"up{level}_resample")
        for i in range(blocks + 1):
            yield from _block(f"dec.{size(level)}_block{i}", f"up{level}_{i}", attends(level) if i == blocks else 0)
    yield from layers.norm(f"dec.{size(0)}_aux_norm", "head_norm")
    yield from layers.conv(f"dec.{size(0)}_aux_conv", "head")


def _adm(module: UNet) -> Iterator[WeightMap]:
    levels = layers.levels(module)
    size = lambda level: "x".join(str(side >> level) for side in module.image_size)  # noqa: E731
    yield WeightMap(("map_label.weight",), ("label_embedding/embedding",), linear, linear)
    yield from _time_embedding()
    yield from layers.conv(f"enc.{size(0)}_conv", "stem")
    for level in levels:
        for i in range(level.blocks):
            yield from _block(f"enc.{size(level.index)}_block{i}", f"down{level.index}_{i}", level.attends and level.heads)
        if not level.last:  # a level ends with its resampling here, and begins with it there
            yield from layers.block(_RESIDUAL, f"enc.{size(level.index + 1)}_down", f"down{level.index}_resample")
    yield from _middle(size(levels[-1].index), levels[-1].heads)
    for level in reversed(levels):
        for i in range(level.blocks + 1):
            yield from _block(f"dec.{size(level.index)}_block{i}", f"up{level.index}_{i}", level.attends and level.heads)
        if level.index:
            yield from layers.block(_RESIDUAL, f"dec.{size(level.index - 1)}_up", f"up{level.index}_resample")
    yield from layers.norm("out_norm", "head_norm")
    yield from layers.conv("out_conv", "head")


def _time_embedding() -> list[WeightMap]:
    return [*layers.dense("map_layer0", "time_embedding/in"), *layers.dense("map_layer1", "time_embedding/out")]


def _middle(size: str, heads: int) -> Iterator[WeightMap]:
    yield from _block(f"dec.{size}_in0", "middle_0", heads)
    yield from _block(f"dec.{size}_in1", "middle_1")


@register("layout", "edm")
@dataclasses.dataclass(frozen=True)
class Edm(Layout):
    """Names the weights of EDM's networks, with or without that of their preconditioning ("model.") before each tensor's."""

    name = "edm"

    def weight_maps(self, network: Network) -> Sequence[WeightMap]:
        """Map every parameter of a `song_unet`, or of a `unet` as `edm_adm64` is one.

        Raises:
          ConfigError: another kind of network, or fields that such weights were not trained with.
        """
        module = network.module
        if isinstance(module, SongUNet):
            return list(_song(module))
        if not isinstance(module, UNet):
            raise ConfigError(
                f"layout {self.name!r} is that of the networks 'song_unet' and 'unet' (edm_adm64), but the network is a "
                f"{type(module).__name__}: name another recipe or another --layout"
            )
        fields = {"embedding": "adm", "norm_epsilon": 1e-5, "resample": "resblock", "conditioning": "adagn"}
        layers.check_fields(self.name, module, fields)
        return list(_adm(module))

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Drop the preconditioning's name, and its own constants."""
        return {name: tensor for name, tensor in _bare(tensors).items() if name != _LEVELS}

    def constants(self, network: Network) -> dict[str, Constant]:
        """Return the filters of all convolutions that resample, and the Fourier frequencies of NCSN++."""
        module = network.module
        taps = np.array(getattr(module, "taps", (1, 1)), np.float32)
        filters = Constant((np.outer(taps, taps) / taps.sum() ** 2)[None, None], "resample_filter")
        names = {name.rpartition(".")[0] for entry in self.weight_maps(network) for name in entry.names}
        resampling = {name.rpartition(".")[0] for name in names if re.fullmatch(r"\w+\.\w+_(down|up)\.\w+", name)}
        found = {f"{name}.{part}.resample_filter": filters for name in sorted(resampling) for part in ("conv0", "skip")}
        if getattr(module, "pyramid", False):
            found |= {f"{name}.resample_filter": filters for name in sorted(names) if name.endswith("_aux_residual")}
        if getattr(module, "embedding", None) == "fourier":
            found[_FREQUENCIES] = Constant(np.array(module.frequencies, np.float32), "frequencies")
        return found

    def fields_in(self, path: str | Path) -> dict[str, Any]:
        """Return the Fourier frequencies of an NCSN++."""
        with contextlib.suppress(DataError):  # most of its networks have none; a file that cannot be read is told of later
            return {"frequencies": list(frequencies(path))}
        return {}

    def config(self, network: Network) -> dict[str, Any]:
        """Return the arguments of SongUNet or DhariwalUNet, the class in "_class_name"."""
        module, size = network.module, layers.square(self.name, network.module.image_size)
        shared = {
            "img_resolution": size,
            "in_channels": network.spec.channels,
            "out_channels": module.out_channels,
            "label_dim": module.num_classes if isinstance(module, SongUNet) else module.label_table,
            "model_channels": module.channels,
            "channel_mult": list(module.multipliers),
            "attn_resolutions": [
                size >> k for k in range(len(module.multipliers)) if size >> k in module.attention_resolutions
            ],
            "dropout": module.dropout,
        }
        if isinstance(module, UNet):
            _check_adm(self.name, network)
            blocks = layers.one_for_all(self.name, "num_res_blocks", module.num_res_blocks)
            return {"_class_name": "DhariwalUNet", **shared, "num_blocks": blocks}
        fourier = module.embedding == "fourier"
        return {
            "_class_name": "SongUNet",
            **shared,
            "num_blocks": module.num_res_blocks,
            "augment_dim": module.augment_dim,
            "embedding_type": "fourier" if fourier else "positional",
            "channel_mult_noise": 2 if fourier else 1,
            "encoder_type": "residual" if module.pyramid else "standard",
            "decoder_type": "standard",
            "resample_filter": list(module.taps),
        }


def _check_adm(layout: str, network: Network) -> None:
    """DhariwalUNet has heads of 64 channels, and one group for every 4 channels, at most 32."""
    module = network.module
    layers.check_expressible(layout, network, {"label"}, {"skip_scale": 1.0})
    for level, (width, attends) in zip(layers.levels(module), module.levels, strict=True):
        if width // 4 < module.groups or module.groups != 32:
            raise ConfigError(f"layout {layout!r} has networks with 32 groups and at least 128 channels only, not {width}")
        if (attends or level.last) and width != 64 * level.heads:
            raise ConfigError(f"layout {layout!r} has networks with head_channels=64 only, not {width // level.heads}")
