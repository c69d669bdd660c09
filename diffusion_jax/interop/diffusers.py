"""Checkpoints of diffusers' UNet2DModel: DDPM's U-Net and its descendants. Their config.json: see `diffusers_config`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from diffusion_jax.interop import layers
from diffusion_jax.interop.convert import WeightMap
from diffusion_jax.interop.diffusers_config import DEFAULTS, of_network
from diffusion_jax.interop.layouts import Layout
from diffusion_jax.models.network import Network
from diffusion_jax.registry import register

_RESIDUAL = {
    "norm1": (layers.norm, "norm_in"),
    "conv1": (layers.conv, "conv_in"),
    "time_emb_proj": (layers.dense, "emb"),
    "norm2": (layers.norm, "norm_out"),
    "conv2": (layers.conv, "conv_out"),
    "conv_shortcut": (layers.conv_1x1, "shortcut"),  # where the width changes
}
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def residual(name: str, path: str) -> list[WeightMap]:
    """Return the maps of a residual block, resampling or not."""
    return layers.block(_RESIDUAL, name, path)


def attention(name: str, path: str) -> list[WeightMap]:
    """Return the maps of an attention block: queries, keys and values are three maps there, and one here."""
    return [
        *layers.norm(f"{name}.group_norm", f"{path}/norm"),
        *layers.dense((f"{name}.to_q", f"{name}.to_k", f"{name}.to_v"), f"{path}/qkv"),
        *layers.dense(f"{name}.to_out.0", f"{path}/out"),
    ]


def _swap_halves(width: int, kernel: np.ndarray) -> np.ndarray:
    """Sines and cosines change places along the inputs of the embedding's first layer; its own inverse."""
    half = width // 2
    return np.concatenate([kernel[half : 2 * half], kernel[:half], kernel[2 * half :]])


@register("layout", "diffusers")
@dataclasses.dataclass(frozen=True)
class Diffusers(Layout):
    """Names the weights of UNet2DModel.

    Args:
      cosine_first: whether the sinusoidal embedding is [cos, sin] there (`flip_sin_to_cos` in config.json); by default it
        is as in the network.
    """

    cosine_first: bool | None = None
    name = "diffusers"
    weight_file = "diffusion_pytorch_model.safetensors"

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Diffusers:
        """Return the layout of a model with a config.json."""
        return cls(cosine_first=bool({**DEFAULTS, **config}["flip_sin_to_cos"]))

    def _cosine_first(self, network: Network) -> bool:
        return network.module.embedding == "adm" if self.cosine_first is None else self.cosine_first

    def config(self, network: Network) -> dict[str, Any]:
        """Return UNet2DModel's configuration of a network."""
        return of_network(network, self._cosine_first(network))

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rename attention as diffusers 0.14 and later do; files that were saved before have other names."""
        return {
            ".".join([*parts[:-2], _OLD_NAMES.get(parts[-2], parts[-2]), parts[-1]]) if len(parts) > 2 else name: tensor
            for name, tensor in tensors.items()
            for parts in [name.split(".")]
        }

    def weight_maps(self, network: Network) -> list[WeightMap]:
        """Map every tensor of a checkpoint.

        Raises:
          ConfigError: another kind of network.
        """
        module = layers.unet_of(network, self.name)
        # Here "adm" is [cos, sin] and "ddpm" [sin, cos]; there the order and the frequencies are chosen apart.
        swapped = self._cosine_first(network) != (module.embedding == "adm")
        rows = {"rows": functools.partial(_swap_halves, module.channels)} if swapped else {}
        return [
            *layers.dense("time_embedding.linear_1", "time_embedding/in", **rows),
            *layers.dense("time_embedding.linear_2", "time_embedding/out"),
            WeightMap(("class_embedding.weight",), ("label_embedding/embedding",)),
            *layers.conv("conv_in", "stem"),
            *_down(module),
            *residual("mid_block.resnets.0", "middle_0_res"),
            *attention("mid_block.attentions.0", "middle_0_attn"),
            *residual("mid_block.resnets.1", "middle_1_res"),
            *_up(module),
            *layers.norm("conv_norm_out", "head_norm"),
            *layers.conv("conv_out", "head"),
        ]


def _down(module: Any) -> Iterator[WeightMap]:
    for level in layers.levels(module):
        block = f"down_blocks.{level.index}"
        for index in range(level.blocks):
            yield from _stage(block, index, f"down{level.index}_{index}", level)
        if not level.last:
            yield from _resampling(module, f"{block}.downsamplers.0", f"down{level.index}_resample")


def _up(module: Any) -> Iterator[WeightMap]:
    for number, level in enumerate(reversed(layers.levels(module))):
        block = f"up_blocks.{number}"
        for index in range(level.blocks + 1):
            yield from _stage(block, index, f"up{level.index}_{index}", level)
        if level.index:
            yield from _resampling(module, f"{block}.upsamplers.0", f"up{level.index}_resample")


def _stage(block: str, index: int, path: str, level: layers.Level) -> Iterator[WeightMap]:
    yield from residual(f"{block}.resnets.{index}", f"{path}_res")
    if level.attends:
        yield from attention(f"{block}.attentions.{index}", f"{path}_attn")


def _resampling(module: Any, name: str, path: str) -> list[WeightMap]:
    return residual(name, path) if module.resample == "resblock" else layers.conv(f"{name}.conv", f"{path}/conv")
