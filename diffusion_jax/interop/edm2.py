"""Checkpoints of EDM2: its magnitude-preserving U-Net inside of its preconditioning, with the head of the uncertainty.

Its releases are pickles of whole Python objects; `pickles` takes the tensors out of them and runs nothing. Frequencies and
phases of the Fourier features are no parameters: drawn before training, they are data in the file, and become fields of the
network. Source: Karras et al. 2024 (arXiv 2312.02696) and its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop import layers
from diffusion_jax.interop.convert import Change, WeightMap, convolution, linear, same
from diffusion_jax.interop.layouts import Constant, Layout
from diffusion_jax.interop.tensors import read_tensors
from diffusion_jax.models import checks
from diffusion_jax.models.edm2_unet import EDM2UNet
from diffusion_jax.models.network import Network
from diffusion_jax.registry import register

_FOURIER = {"fourier": "unet.emb_fourier", "uncertainty_fourier": "logvar_fourier"}  # field here -> name there


def _dense(name: str, path: str) -> WeightMap:
    return WeightMap((f"{name}.weight",), (f"{path}/kernel",), linear, linear)


def _conv(name: str, path: str, there: Change = same, back: Change = same) -> WeightMap:
    change = lambda tensor: there(convolution(tensor))  # noqa: E731
    return WeightMap((f"{name}.weight",), (f"{path}/kernel",), change, lambda kernel: back(kernel).transpose(3, 2, 0, 1))


def _block(name: str, path: str, heads: int = 0) -> Iterator[WeightMap]:
    yield WeightMap((f"{name}.emb_gain",), (f"{path}/emb_gain/gain",))
    yield _conv(f"{name}.conv_res0", f"{path}/conv_in")
    yield _dense(f"{name}.emb_linear", f"{path}/emb")
    yield _conv(f"{name}.conv_res1", f"{path}/conv_out")
    yield _conv(f"{name}.conv_skip", f"{path}/skip")  # where the width changes
    if heads:
        yield _conv(f"{name}.attn_qkv", f"{path}/qkv", *layers.interleave_heads(heads))
        yield _conv(f"{name}.attn_proj", f"{path}/attention_out")


def _trunk(module: EDM2UNet) -> Iterator[WeightMap]:
    count = len(module.multipliers)
    size = lambda level: "x".join(str(side >> level) for side in module.image_size)  # noqa: E731
    heads = [module.channels * multiplier // module.head_channels for multiplier in module.multipliers]
    attends = checks.attention_levels(module.image_size, module.attention_resolutions, count)
    yield _conv(f"unet.enc.{size(0)}_conv", "stem")
    for level in range(count):
        if level:
            yield from _block(f"unet.enc.{size(level)}_down", f"down{level}_resample")
        for i in range(module.num_res_blocks):
            yield from _block(f"unet.enc.{size(level)}_block{i}", f"down{level}_{i}", attends[level] and heads[level])
    yield from _block(f"unet.dec.{size(count - 1)}_in0", "middle_0", heads[-1])
    yield from _block(f"unet.dec.{size(count - 1)}_in1", "middle_1")
    for level in reversed(range(count)):
        if level < count - 1:
            yield from _block(f"unet.dec.{size(level)}_up", f"up{level}_resample")
        for i in range(module.num_res_blocks + 1):
            yield from _block(f"unet.dec.{size(level)}_block{i}", f"up{level}_{i}", attends[level] and heads[level])


@register("layout", "edm2")
@dataclasses.dataclass(frozen=True)
class Edm2(Layout):
    """Names the weights of EDM2's networks, of pixels or latents, as their preconditioning has them ("unet." and "logvar_")."""

    name = "edm2"

    def weight_maps(self, network: Network) -> list[WeightMap]:
        """Map every parameter of an `edm2`.

        Raises:
          ConfigError: another kind of network.
        """
        module = network.module
        if not isinstance(module, EDM2UNet):
            raise ConfigError(
                f"layout {self.name!r} is that of the network 'edm2', but the network is a {type(module).__name__}: name "
                "another recipe or another --layout"
            )
        return [
            WeightMap(("unet.out_gain",), ("head_gain/gain",)),
            _dense("unet.emb_noise", "noise_embedding"),
            _dense("unet.emb_label", "label_embedding"),
            *_trunk(module),
            _conv("unet.out_conv", "head"),
            _dense("logvar_linear", "uncertainty"),
        ]

    def constants(self, network: Network) -> dict[str, Constant]:
        """Return frequencies and phases of the Fourier features."""
        return {
            f"{there}.{part}": Constant(np.array(values, np.float32), field)
            for field, there in _FOURIER.items()
            for part, values in zip(("freqs", "phases"), getattr(network.module, field), strict=True)
        }

    def fields_in(self, path: str | Path) -> dict[str, Any]:
        """Return the Fourier constants in a file.

        Raises:
          DataError: a file without them.
        """
        tensors = read_tensors(path)
        missing = [name for there in _FOURIER.values() for name in (f"{there}.freqs", f"{there}.phases") if name not in tensors]
        if missing:
            raise DataError(f"{path} has no {missing[0]}: it is no checkpoint of EDM2, whose Fourier constants are in the file")
        return {
            field: [_floats(tensors[f"{there}.{part}"]) for part in ("freqs", "phases")] for field, there in _FOURIER.items()
        }

    def config(self, network: Network) -> dict[str, Any]:
        """Return the arguments of Precond, the class in "_class_name"."""
        module = network.module
        if module.out_channels != network.spec.channels:
            raise ConfigError(f"layout {self.name!r} has networks with as many channels in as out only")
        return {
            "_class_name": "Precond",
            "img_resolution": layers.square(self.name, module.image_size),
            "img_channels": module.out_channels,
            "label_dim": module.num_classes,
            "model_channels": module.channels,
            "channel_mult": list(module.multipliers),
            "num_blocks": module.num_res_blocks,
            "attn_resolutions": list(module.attention_resolutions),
            "channels_per_head": module.head_channels,
            "dropout": module.dropout,
            "logvar_channels": len(module.uncertainty_fourier[0]),
        }


def _floats(tensor: np.ndarray) -> list[float]:
    return [float(x) for x in tensor.ravel()]
