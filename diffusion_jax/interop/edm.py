"""Checkpoints of EDM: DDPM++ and NCSN++ (its SongUNet), and its ADM (DhariwalUNet).

Its releases are pickles of whole Python objects; `pickles` takes the tensors out of them and runs nothing. Source: Karras et
al. 2022 (arXiv 2206.00364) and its code.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop import layers
from diffusion_jax.interop.convert import WeightMap, linear
from diffusion_jax.interop.layouts import Layout
from diffusion_jax.interop.tensors import read_tensors
from diffusion_jax.models.adm_unet import UNet
from diffusion_jax.models.network import Network
from diffusion_jax.models.score_sde_unet import SongUNet
from diffusion_jax.registry import register

_FREQUENCIES = "map_noise.freqs"
# Constants that both sides compute: the filters, and the levels of improved DDPM's preconditioning.
_CONSTANT = re.compile(r".+\.resample_filter|u")

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
    tensors = _bare(read_tensors(path))
    if _FREQUENCIES not in tensors:
        raise DataError(f"{path} has no {_FREQUENCIES}: it is no NCSN++ checkpoint of EDM, and needs no frequencies")
    return tuple(float(f) for f in tensors[_FREQUENCIES])


def _bare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the name of the preconditioning around the network."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def _side_by_side(heads: int, stacked: np.ndarray) -> np.ndarray:
    """From [head][d][q, k, v] to [q, k, v][head][d] along the last axis."""
    grouped = stacked.reshape(*stacked.shape[:-1], heads, -1, 3)
    return np.moveaxis(grouped, -1, -3).reshape(stacked.shape)


def _interleaved(heads: int, stacked: np.ndarray) -> np.ndarray:
    """The inverse of `_side_by_side`."""
    grouped = stacked.reshape(*stacked.shape[:-1], 3, heads, -1)
    return np.moveaxis(grouped, -3, -1).reshape(stacked.shape)


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
        changes = functools.partial(_side_by_side, heads), functools.partial(_interleaved, heads)
        yield from _pointwise(f"{name}.qkv", f"{path}_attn/qkv", *changes)
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

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Drop the preconditioning's name, and constants."""
        return {name: t for name, t in _bare(tensors).items() if not _CONSTANT.fullmatch(name) and name != _FREQUENCIES}

    def read(self, path: str | Path, network: Network) -> dict[str, Any]:
        """Read as every layout does; the Fourier frequencies of NCSN++ are no parameters, and must be the network's.

        Raises:
          ConfigError: the network was built with other frequencies than the file's.
        """
        given = _bare(read_tensors(path)).get(_FREQUENCIES)
        wanted = getattr(network.module, "frequencies", ())
        if given is not None and not np.array_equal(given, np.asarray(wanted, given.dtype)):
            raise ConfigError(
                f"{path} was trained with Fourier frequencies of its own: build the network with "
                "frequencies=interop.edm.frequencies(path)"
            )
        return super().read(path, network)
