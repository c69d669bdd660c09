"""Checkpoints of improved DDPM (improved-diffusion) and of ADM (guided-diffusion): the same U-Net under the same names.

Blocks are numbered as the network runs through them: `input_blocks.N`, `middle_block.N`, `output_blocks.N`, each a list of
layers. Sources: Nichol & Dhariwal 2021 (arXiv 2102.09672), Dhariwal & Nichol 2021 (arXiv 2105.05233) and their code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from diffusion_jax.errors import ConfigError
from diffusion_jax.interop import links
from diffusion_jax.interop.convert import Link, linear
from diffusion_jax.interop.layouts import Layout
from diffusion_jax.models.classifiers import UNetClassifier
from diffusion_jax.models.network import Network
from diffusion_jax.registry import register

_RESIDUAL = {
    "in_layers.0": (links.norm, "norm_in"),
    "in_layers.2": (links.conv, "conv_in"),
    "emb_layers.1": (links.dense, "emb"),
    "out_layers.0": (links.norm, "norm_out"),
    "out_layers.3": (links.conv, "conv_out"),
    "skip_connection": (links.conv_1x1, "shortcut"),  # where the width changes
}


def _residual(name: str, path: str) -> list[Link]:
    """A residual block, resampling or not."""
    return links.parts(_RESIDUAL, name, path)


def _attention(name: str, path: str, heads: int, order: links.QkvOrder) -> list[Link]:
    """An attention block."""
    changes = links.ungroup_heads(heads) if order == "legacy" else ()
    return [
        *links.norm(f"{name}.norm", f"{path}/norm"),
        *links.dense_of_conv1d(f"{name}.qkv", f"{path}/qkv", *changes),
        *links.dense_of_conv1d(f"{name}.proj_out", f"{path}/out"),
    ]


def _embeddings() -> list[Link]:
    """Of the noise level, and of the class where there is one."""
    return [
        *links.dense("time_embed.0", "time_embedding/in"),
        *links.dense("time_embed.2", "time_embedding/out"),
        Link(("label_emb.weight",), ("label_embedding/embedding",)),
    ]


def _encoder(module: Any, order: links.QkvOrder) -> Iterator[Link]:
    """From the first convolution to the middle: what the U-Net and the noisy classifier share."""
    yield from links.conv("input_blocks.0.0", "stem")
    number, levels = 1, links.levels(module)
    for level in levels:
        for index in range(level.blocks):
            yield from _stage(f"input_blocks.{number}", f"down{level.index}_{index}", level, order)
            number += 1
        if not level.last:
            yield from _resampling(module, f"input_blocks.{number}.0", f"down{level.index}_resample", ".op")
            number += 1
    yield from _residual("middle_block.0", "middle_0_res")
    yield from _attention("middle_block.1", "middle_0_attn", levels[-1].heads, order)
    yield from _residual("middle_block.2", "middle_1_res")


def _decoder(module: Any, order: links.QkvOrder) -> Iterator[Link]:
    number = 0
    for level in reversed(links.levels(module)):
        for index in range(level.blocks + 1):
            yield from _stage(f"output_blocks.{number}", f"up{level.index}_{index}", level, order)
            if level.index and index == level.blocks:
                name = f"output_blocks.{number}.{1 + level.attends}"
                yield from _resampling(module, name, f"up{level.index}_resample", ".conv")
            number += 1


def _stage(name: str, path: str, level: links.Level, order: links.QkvOrder) -> Iterator[Link]:
    yield from _residual(f"{name}.0", f"{path}_res")
    if level.attends:
        yield from _attention(f"{name}.1", f"{path}_attn", level.heads, order)


def _resampling(module: Any, name: str, path: str, suffix: str) -> list[Link]:
    if module.resample == "resblock":
        return _residual(name, path)
    return links.conv(name + suffix, f"{path}/conv")


_POOLS = {
    "attention": [
        *links.norm("out.0", "pool_norm"),
        Link(("out.2.positional_embedding",), ("pool/positions",), linear, linear),
        *links.dense_of_conv1d("out.2.qkv_proj", "pool/qkv"),  # always in the new order of heads
        *links.dense_of_conv1d("out.2.c_proj", "pool/out"),
    ],
    "adaptive": [*links.norm("out.0", "pool_norm"), *links.dense_of_conv2d("out.3", "pool_out")],
    "spatial": [*links.dense("out.0", "pool_in"), *links.dense("out.2", "pool_out")],
    "spatial_v2": [*links.dense("out.0", "pool_in"), *links.norm("out.1", "pool_norm"), *links.dense("out.3", "pool_out")],
}
"""Of the classifier: what makes logits of the encoder's features."""


@register("layout", "guided_diffusion")
@dataclasses.dataclass(frozen=True)
class GuidedDiffusion(Layout):
    """ADM's U-Nets, upsamplers and noisy classifiers.

    Args:
      attention_order: "legacy" in all published checkpoints but that of ImageNet 64x64, which has "new"; see
        `links.QkvOrder`. The wrong one loads without an error and draws noise.
    """

    attention_order: links.QkvOrder = "legacy"
    name = "guided_diffusion"

    def __post_init__(self) -> None:
        if self.attention_order not in ("legacy", "new"):
            raise ConfigError(f"layout {self.name!r}: attention_order is legacy or new, got {self.attention_order!r}")

    def links(self, network: Network) -> list[Link]:
        """Every tensor of a checkpoint, in its order.

        Raises:
          ConfigError: another kind of network, or fields that such weights were not trained with.
        """
        classifies = isinstance(network.module, UNetClassifier)
        module = network.module if classifies else links.unet_of(network, self.name)
        wanted = {"embedding": "adm", "norm_epsilon": 1e-5}
        links.check_fields(self.name, module, wanted | ({"down_padding": "symmetric"} if module.resample == "conv" else {}))
        trunk = [*_embeddings(), *_encoder(module, self.attention_order)]
        if classifies:
            return [*trunk, *_POOLS[module.pool]]
        return [
            *trunk,
            *_decoder(module, self.attention_order),
            *links.norm("out.0", "head_norm"),
            *links.conv("out.2", "head"),
        ]


@register("layout", "improved_diffusion")
@dataclasses.dataclass(frozen=True)
class ImprovedDiffusion(GuidedDiffusion):
    """Improved DDPM's U-Nets and upsampler: strided convolutions, and heads always in the legacy order."""

    name = "improved_diffusion"
