"""Checkpoints of improved DDPM (improved-diffusion) and of ADM (guided-diffusion): the same U-Net under the same names.

Blocks are numbered as the network runs through them: `input_blocks.N`, `middle_block.N`, `output_blocks.N`, each a list of
layers. Sources: Nichol & Dhariwal 2021 (arXiv 2102.09672), Dhariwal & Nichol 2021 (arXiv 2105.05233) and their code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from diffusion_jax.errors import ConfigError
from diffusion_jax.interop import layers
from diffusion_jax.interop.convert import WeightMap, linear
from diffusion_jax.interop.layouts import Layout
from diffusion_jax.models.classifiers import UNetClassifier
from diffusion_jax.models.network import Network
from diffusion_jax.registry import register

_RESIDUAL = {
    "in_layers.0": (layers.norm, "norm_in"),
    "in_layers.2": (layers.conv, "conv_in"),
    "emb_layers.1": (layers.dense, "emb"),
    "out_layers.0": (layers.norm, "norm_out"),
    "out_layers.3": (layers.conv, "conv_out"),
    "skip_connection": (layers.conv_1x1, "shortcut"),  # where the width changes
}


def _residual(name: str, path: str) -> list[WeightMap]:
    """A residual block, resampling or not."""
    return layers.block(_RESIDUAL, name, path)


def _attention(name: str, path: str, heads: int, order: layers.QkvOrder) -> list[WeightMap]:
    """An attention block."""
    changes = layers.ungroup_heads(heads) if order == "legacy" else ()
    return [
        *layers.norm(f"{name}.norm", f"{path}/norm"),
        *layers.dense_of_conv1d(f"{name}.qkv", f"{path}/qkv", *changes),
        *layers.dense_of_conv1d(f"{name}.proj_out", f"{path}/out"),
    ]


def _embeddings() -> list[WeightMap]:
    """Of the noise level, and of the class where there is one."""
    return [
        *layers.dense("time_embed.0", "time_embedding/in"),
        *layers.dense("time_embed.2", "time_embedding/out"),
        WeightMap(("label_emb.weight",), ("label_embedding/embedding",)),
    ]


def _encoder(module: Any, order: layers.QkvOrder) -> Iterator[WeightMap]:
    """From the first convolution to the middle: what the U-Net and the noisy classifier share."""
    yield from layers.conv("input_blocks.0.0", "stem")
    number, levels = 1, layers.levels(module)
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


def _decoder(module: Any, order: layers.QkvOrder) -> Iterator[WeightMap]:
    number = 0
    for level in reversed(layers.levels(module)):
        for index in range(level.blocks + 1):
            yield from _stage(f"output_blocks.{number}", f"up{level.index}_{index}", level, order)
            if level.index and index == level.blocks:
                name = f"output_blocks.{number}.{1 + level.attends}"
                yield from _resampling(module, name, f"up{level.index}_resample", ".conv")
            number += 1


def _stage(name: str, path: str, level: layers.Level, order: layers.QkvOrder) -> Iterator[WeightMap]:
    yield from _residual(f"{name}.0", f"{path}_res")
    if level.attends:
        yield from _attention(f"{name}.1", f"{path}_attn", level.heads, order)


def _resampling(module: Any, name: str, path: str, suffix: str) -> list[WeightMap]:
    if module.resample == "resblock":
        return _residual(name, path)
    return layers.conv(name + suffix, f"{path}/conv")


_POOLS = {
    "attention": [
        *layers.norm("out.0", "pool_norm"),
        WeightMap(("out.2.positional_embedding",), ("pool/positions",), linear, linear),
        *layers.dense_of_conv1d("out.2.qkv_proj", "pool/qkv"),  # always in the new order of heads
        *layers.dense_of_conv1d("out.2.c_proj", "pool/out"),
    ],
    "adaptive": [*layers.norm("out.0", "pool_norm"), *layers.dense_of_conv2d("out.3", "pool_out")],
    "spatial": [*layers.dense("out.0", "pool_in"), *layers.dense("out.2", "pool_out")],
    "spatial_v2": [*layers.dense("out.0", "pool_in"), *layers.norm("out.1", "pool_norm"), *layers.dense("out.3", "pool_out")],
}
"""Of the classifier: what makes logits of the encoder's features."""


@register("layout", "guided_diffusion")
@dataclasses.dataclass(frozen=True)
class GuidedDiffusion(Layout):
    """Names the weights of ADM's U-Nets, upsamplers and noisy classifiers.

    Args:
      attention_order: "legacy" in all published checkpoints but that of ImageNet 64x64, which has "new"; see
        `layers.QkvOrder`. The wrong one loads without an error and draws noise.
    """

    attention_order: layers.QkvOrder = "legacy"
    name = "guided_diffusion"

    def weight_maps(self, network: Network) -> list[WeightMap]:
        """Map every tensor of a checkpoint, in its order.

        Raises:
          ConfigError: another kind of network, or fields that such weights were not trained with.
        """
        classifies = isinstance(network.module, UNetClassifier)
        module = network.module if classifies else layers.unet_of(network, self.name)
        wanted = {"embedding": "adm", "norm_epsilon": 1e-5}
        layers.check_fields(self.name, module, wanted | ({"down_padding": "symmetric"} if module.resample == "conv" else {}))
        trunk = [*_embeddings(), *_encoder(module, self.attention_order)]
        if classifies:
            return [*trunk, *_POOLS[module.pool]]
        return [
            *trunk,
            *_decoder(module, self.attention_order),
            *layers.norm("out.0", "head_norm"),
            *layers.conv("out.2", "head"),
        ]

    def config(self, network: Network) -> dict[str, Any]:
        """Return the arguments of UNetModel, SuperResModel or EncoderUNetModel, the last with its class in "_class_name"."""
        module, wanted = network.module, {"groups": 32, "skip_scale": 1.0}
        low_res = network.cond_spec.get("low_res")
        layers.check_expressible(
            self.name, network, {"label", "low_res"}, wanted | ({"low_res_method": "bilinear"} if low_res else {})
        )
        if low_res and low_res.shape[-1] != network.spec.channels:
            raise ConfigError(f"layout {self.name!r} has upsamplers of images with as many channels as their output only")
        classifies, size = isinstance(module, UNetClassifier), layers.square(self.name, module.image_size)
        kind = "EncoderUNetModel" if classifies else "SuperResModel" if low_res else "UNetModel"
        return {
            "_class_name": kind,
            "image_size": size,
            "in_channels": network.spec.channels,
            "model_channels": module.channels,
            "out_channels": module.num_classes if classifies else module.out_channels,
            "num_res_blocks": layers.one_for_all(self.name, "num_res_blocks", module.num_res_blocks),
            "attention_resolutions": [2**level.index for level in layers.levels(module) if level.attends],
            "dropout": module.dropout,
            "channel_mult": list(module.multipliers),
            "use_scale_shift_norm": module.conditioning == "adagn",
            **({"pool": module.pool} if classifies else {"num_classes": module.label_table or None}),
            **self._heads(module),
        }

    def _heads(self, module: Any) -> dict[str, Any]:
        """Heads, their order, and how levels resample: what improved-diffusion cannot say."""
        return {
            "num_heads": module.num_heads,
            "num_head_channels": module.head_channels or -1,
            "resblock_updown": module.resample == "resblock",
            "use_new_attention_order": self.attention_order == "new",
        }


@register("layout", "improved_diffusion")
@dataclasses.dataclass(frozen=True)
class ImprovedDiffusion(GuidedDiffusion):
    """Names the weights of improved DDPM's U-Nets and upsampler: strided convolutions, and heads always in the legacy order."""

    attention_order: Literal["legacy"] = "legacy"
    name = "improved_diffusion"

    def _heads(self, module: Any) -> dict[str, Any]:
        if isinstance(module, UNetClassifier) or module.resample != "conv" or module.multipliers[0] != 1:
            raise ConfigError(
                f"layout {self.name!r} has U-Nets with resample='conv' whose first multiplier is 1 only; layout "
                "'guided_diffusion' has the run's"
            )
        heads = [level.heads for level in layers.levels(module) if level.attends or level.last]
        return {"num_heads": layers.one_for_all(self.name, "number of attention heads", heads)}
