"""Imagen's Efficient U-Net for super-resolution (Saharia et al. 2022, appendix B.1, arXiv 2205.11487)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models import checks, layers
from diffusion_jax.models.adm_unet import unet
from diffusion_jax.models.blocks import PooledText, TextAttention, TextPool
from diffusion_jax.models.network import Network, constrain
from diffusion_jax.registry import part, register
from diffusion_jax.spec import Size, Spec, size_of
from diffusion_jax.values import Count, Natural, Positive, Probability


class EfficientBlock(nn.Module):
    """GroupNorm-swish-conv twice, and a 1x1 convolution on the shortcut, always."""

    features: int
    groups: int
    epsilon: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = constrain(x)
        norm = dict(groups=self.groups, epsilon=self.epsilon, dtype=self.dtype)
        h = layers.conv(self.features, 3, "conv_in", self.dtype)(nn.silu(layers.GroupNorm(**norm, name="norm_in")(x)))
        h = layers.Dropout(self.dropout, name="dropout")(nn.silu(layers.GroupNorm(**norm, name="norm_out")(h)), train)
        h = layers.conv(self.features, 3, "conv_out", self.dtype, zero=True)(h)
        return h + layers.conv(self.features, 1, "shortcut", self.dtype)(x)


class EfficientUNet(nn.Module):
    """The network of `efficient_unet`, whose docstring explains the fields."""

    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    strides: tuple[int, ...]
    self_attention: tuple[bool, ...]
    text_attention: tuple[bool, ...]
    num_heads: int
    label_table: int
    pool_text: bool
    low_res_method: str
    dropout: float
    remat: bool
    dtype: Any
    groups: int
    norm_epsilon: float

    def _embed(self, noise: jax.Array, cond: dict[str, Any]) -> jax.Array:
        """The noise level, augmentation level, class label and pooled text, summed: [B, 4 * channels] float32."""
        width = 4 * self.channels
        sinusoid = lambda value: layers.sinusoidal_embedding(value, self.channels, "adm")  # noqa: E731
        emb = layers.MLPEmbedding(width, name="time_embedding")(sinusoid(noise))
        if "aug_level" in cond:
            emb += layers.MLPEmbedding(width, name="aug_embedding")(sinusoid(cond["aug_level"]))
        if "label" in cond:
            emb += nn.Embed(self.label_table, width, embedding_init=layers.normal_init(), name="label_embedding")(cond["label"])
        if self.pool_text:
            emb += layers.MLPEmbedding(width, name="pooled_embedding")(TextPool(width, name="text_pool")(cond["text"]))
        return emb

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array, cond: dict[str, Any], train: bool = False) -> jax.Array:
        checks.check_sizes(x, cond, math.prod(self.strides))
        emb, text = nn.silu(self._embed(noise, cond)), cond.get("text")
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        block = nn.remat(EfficientBlock, static_argnums=(2,)) if self.remat else EfficientBlock
        attention = nn.remat(TextAttention) if self.remat else TextAttention

        def stage(h: jax.Array, level: int, name: str) -> jax.Array:
            """Add the embedding, and apply residual blocks and attention."""
            injected = nn.Dense(h.shape[-1], kernel_init=layers.dense_init(), name=f"{name}_emb")(emb)
            h = h + injected[:, None, None].astype(self.dtype)
            for i in range(self.num_res_blocks[level]):
                fields = (widths[level], self.groups, self.norm_epsilon, self.dropout, self.dtype)
                h = block(*fields, name=f"{name}_{i}")(h, train)
            own, with_text = self.self_attention[level], self.text_attention[level] and text is not None
            if own or with_text:
                fields = (self.num_heads, own, self.groups, self.norm_epsilon, self.dtype)
                h = attention(*fields, name=f"{name}_attn")(h, text if with_text else None)
            return h

        parts = [x]
        if "low_res" in cond:
            low_res = cond["low_res"]
            parts.append(jax.image.resize(low_res, (*x.shape[:3], low_res.shape[-1]), method=self.low_res_method))
        h = layers.conv(widths[0], 3, "stem", self.dtype)(jnp.concatenate(parts, axis=-1).astype(self.dtype))
        skips = []
        for level, (width, stride) in enumerate(zip(widths, self.strides, strict=True)):
            pad = ((1, 1), (1, 1))
            h = layers.conv(width, 3, f"down{level}_resample", self.dtype, strides=(stride, stride), padding=pad)(h)
            h = stage(h, level, f"down{level}")
            skips.append(h)
        for level in reversed(range(len(widths))):
            if level + 1 < len(widths):
                h = jnp.concatenate([h, skips[level] / math.sqrt(2)], axis=-1)
            h = stage(h, level, f"up{level}")
            if self.strides[level] == 2:
                h = layers.Upsample(self.dtype, name=f"up{level}_resample")(h)
        h = nn.silu(layers.GroupNorm(self.groups, self.norm_epsilon, name="head_norm")(h))
        return layers.conv(self.out_channels, 3, "head", jnp.float32, zero=True)(h)


@part("network", "efficient_unet")
def efficient_unet(
    image_size: Size,
    in_channels: Count = 3,
    out_channels: Count | None = None,
    channels: Count = 128,
    multipliers: Sequence[Count] = (1, 2, 4, 8),
    num_res_blocks: Sequence[Count] = (2, 4, 8, 8),
    strides: Sequence[int] = (2, 2, 2, 2),
    self_attention: Sequence[bool] = (False, False, False, True),
    text_attention: Sequence[bool] = (False, False, False, True),
    num_heads: Count = 8,
    num_classes: Natural = 0,
    null_class: bool = False,
    low_res_channels: Natural = 0,
    low_res_size: Size | None = None,
    low_res_method: checks.Resizing = "bilinear",
    aug_level: bool = False,
    context_dim: Natural = 0,
    context_length: Count = 128,
    dropout: Probability = 0.0,
    remat: bool = False,
    dtype: checks.Dtype = "float32",
    groups: Count = 32,
    norm_epsilon: Positive = 1e-5,
) -> Network:
    """Build Imagen's Efficient U-Net: most blocks at low resolutions, shrinking before and enlarging after a level's blocks.

    Without self-attention it is fully convolutional in the image: trained on crops, it runs on images of any size that the
    strides divide. What the paper leaves open (how embeddings are projected: here once a level; whether every level has a
    stride: here it has) is a choice of this code, so parameter counts are not the published ones.

    Args:
      image_size: H = W, or (H, W), of training images, in pixels.
      channels, multipliers, num_res_blocks: level l has `channels * multipliers[l]` and `num_res_blocks[l]`, down and up.
      strides: 2 shrinks by a convolution at the start of a level, on the way down; 1 keeps the size.
      self_attention, text_attention: by level, after its blocks. With both, text joins the positions' keys; with the
        second alone it is cross-attention.
      num_heads: that share an inner width of twice the level's channels.
      context_dim, context_length: above 0 the network takes `cond["text"]`: tokens [B, L, D] and mask [B, L], also pooled
        by attention and added to the embedding; L may differ from `context_length` when applied.
      num_classes, null_class, low_res_channels, low_res_size, low_res_method, aug_level, dropout, remat, dtype: as in `unet`.

    Raises:
      ConfigError: fields of different lengths; sizes, channels, groups or heads that do not divide.

    Source: Saharia et al. 2022, appendix B.1 (arXiv 2205.11487).
    """
    per_level = {"num_res_blocks": num_res_blocks, "strides": strides}
    per_level |= {"self_attention": self_attention, "text_attention": text_attention}
    for field, values in per_level.items():
        if len(values) != len(multipliers):
            raise ConfigError(f"efficient_unet: {field} has {len(values)} entries, multipliers has {len(multipliers)} levels")
    size = size_of(image_size)
    checks.check_null_class("efficient_unet", num_classes, null_class)
    if set(strides) - {1, 2}:
        raise ConfigError(f"efficient_unet: strides are 1 or 2, got {tuple(strides)}")
    checks.check_sides("efficient_unet", size, math.prod(strides), "the product of the strides")
    widths = checks.level_widths(channels, multipliers)
    attends = [own or by_text for own, by_text in zip(self_attention, text_attention, strict=True)]
    checks.check_widths(widths, attends, groups, num_heads, None)
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    low_res = size_of(low_res_size) if low_res_size else (size[0] // 4, size[1] // 4)
    spec = {
        "label": array(dtype=jnp.int32) if num_classes else None,
        "low_res": array(*low_res, low_res_channels) if low_res_channels else None,
        "aug_level": array() if aug_level else None,
        "text": _text_spec(context_length, context_dim) if context_dim else None,
    }
    module = EfficientUNet(
        out_channels or in_channels, channels, tuple(multipliers), tuple(num_res_blocks), tuple(strides),
        tuple(self_attention), tuple(text_attention), num_heads, num_classes + null_class, bool(context_dim),
        low_res_method, dropout, remat, jnp.dtype(dtype), groups, norm_epsilon,
    )  # fmt: skip
    return Network(module, Spec.image(size, in_channels), {k: v for k, v in spec.items() if v is not None})


def _text_spec(length: int, features: int) -> dict[str, Any]:
    return {"tokens": jax.ShapeDtypeStruct((length, features), jnp.float32), "mask": jax.ShapeDtypeStruct((length,), jnp.bool_)}


@register("network", "text_unet")
def text_unet(**fields: Any) -> Network:
    """Build `unet` of text embeddings, which it also pools by attention, where `unet` would be given the pooled vector.

    Takes every field of `unet` but pooled_dim; context_dim must be above 0.

    Source: Saharia et al. 2022, section 2.1 and appendix D.3.1 (arXiv 2205.11487).
    """
    given = inspect.signature(unet).bind(**fields)
    given.apply_defaults()
    if not given.arguments["context_dim"]:
        raise ConfigError("text_unet: context_dim must be the number of features of a token, at least 1")
    features = 4 * given.arguments["channels"]
    inner = unet(**{**fields, "pooled_dim": features})
    spec = {**inner.cond_spec, "text": {k: v for k, v in inner.cond_spec["text"].items() if k != "pooled"}}
    return Network(PooledText(inner.module, features), inner.spec, spec)


def _own_signature() -> inspect.Signature:
    signature = inspect.signature(unet)
    keyword = inspect.Parameter.KEYWORD_ONLY
    kept = [p.replace(kind=keyword) for name, p in signature.parameters.items() if name != "pooled_dim"]
    return signature.replace(parameters=kept)


text_unet.__signature__ = _own_signature()  # type: ignore[attr-defined]
