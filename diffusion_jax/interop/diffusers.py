"""Checkpoints of diffusers' UNet2DModel: DDPM's U-Net and its descendants. Their config.json: see `diffusers_config`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from diffusion_jax.interop import links
from diffusion_jax.interop.convert import Link
from diffusion_jax.interop.diffusers_config import DEFAULTS
from diffusion_jax.interop.layouts import Layout
from diffusion_jax.models.network import Network
from diffusion_jax.registry import register

_RESIDUAL = {
    "norm1": (links.norm, "norm_in"),
    "conv1": (links.conv, "conv_in"),
    "time_emb_proj": (links.dense, "emb"),
    "norm2": (links.norm, "norm_out"),
    "conv2": (links.conv, "conv_out"),
    "conv_shortcut": (links.conv_1x1, "shortcut"),  # where the width changes
}
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def residual(name: str, path: str) -> list[Link]:
    """A residual block, resampling or not."""
    return links.parts(_RESIDUAL, name, path)


def attention(name: str, path: str) -> list[Link]:
    """An attention block: queries, keys and values are three maps there, and one here."""
    return [
        *links.norm(f"{name}.group_norm", f"{path}/norm"),
        *links.dense((f"{name}.to_q", f"{name}.to_k", f"{name}.to_v"), f"{path}/qkv"),
        *links.dense(f"{name}.to_out.0", f"{path}/out"),
    ]


def _swap_halves(width: int, kernel: np.ndarray) -> np.ndarray:
    """Sines and cosines change places along the inputs of the embedding's first layer; its own inverse."""
    half = width // 2
    return np.concatenate([kernel[half : 2 * half], kernel[:half], kernel[2 * half :]])


@register("layout", "diffusers")
@dataclasses.dataclass(frozen=True)
class Diffusers(Layout):
    """UNet2DModel.

    Args:
      cosine_first: whether the sinusoidal embedding was [cos, sin] (`flip_sin_to_cos` in config.json).
    """

    cosine_first: bool = False
    name = "diffusers"

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Diffusers:
        """The layout of a model with a config.json."""
        return cls(cosine_first={**DEFAULTS, **config}["flip_sin_to_cos"])

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Attention had other names up to diffusers 0.14, and has these in files that were saved before."""
        return {
            ".".join([*parts[:-2], _OLD_NAMES.get(parts[-2], parts[-2]), parts[-1]]) if len(parts) > 2 else name: tensor
            for name, tensor in tensors.items()
            for parts in [name.split(".")]
        }

    def links(self, network: Network) -> list[Link]:
        """Every tensor of a checkpoint.

        Raises:
          ConfigError: another kind of network.
        """
        module = links.unet_of(network, self.name)
        # Here "adm" is [cos, sin] and "ddpm" [sin, cos]; there the order and the frequencies are chosen apart.
        swapped = self.cosine_first != (module.embedding == "adm")
        rows = {"rows": functools.partial(_swap_halves, module.channels)} if swapped else {}
        return [
            *links.dense("time_embedding.linear_1", "time_embedding/in", **rows),
            *links.dense("time_embedding.linear_2", "time_embedding/out"),
            Link(("class_embedding.weight",), ("label_embedding/embedding",)),
            *links.conv("conv_in", "stem"),
            *_down(module),
            *residual("mid_block.resnets.0", "middle_0_res"),
            *attention("mid_block.attentions.0", "middle_0_attn"),
            *residual("mid_block.resnets.1", "middle_1_res"),
            *_up(module),
            *links.norm("conv_norm_out", "head_norm"),
            *links.conv("conv_out", "head"),
        ]


def _down(module: Any) -> Iterator[Link]:
    for level in links.levels(module):
        block = f"down_blocks.{level.index}"
        for index in range(level.blocks):
            yield from _stage(block, index, f"down{level.index}_{index}", level)
        if not level.last:
            yield from _resampling(module, f"{block}.downsamplers.0", f"down{level.index}_resample")


def _up(module: Any) -> Iterator[Link]:
    for number, level in enumerate(reversed(links.levels(module))):
        block = f"up_blocks.{number}"
        for index in range(level.blocks + 1):
            yield from _stage(block, index, f"up{level.index}_{index}", level)
        if level.index:
            yield from _resampling(module, f"{block}.upsamplers.0", f"up{level.index}_resample")


def _stage(block: str, index: int, path: str, level: links.Level) -> Iterator[Link]:
    yield from residual(f"{block}.resnets.{index}", f"{path}_res")
    if level.attends:
        yield from attention(f"{block}.attentions.{index}", f"{path}_attn")


def _resampling(module: Any, name: str, path: str) -> list[Link]:
    return residual(name, path) if module.resample == "resblock" else links.conv(f"{name}.conv", f"{path}/conv")
