"""The DDPM/ADM U-Net family in one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models import checks, layers
from diffusion_jax.models.blocks import AttentionBlock, Conditioning, ResidualBlock
from diffusion_jax.models.network import Network
from diffusion_jax.registry import part
from diffusion_jax.spec import Size, Spec, size_of
from diffusion_jax.values import Count, Natural, Positive, Probability


class Embedded(NamedTuple):
    """What every block is told: the embedding [B, 4 * channels], and a text whose tokens join the attention's keys."""

    emb: jax.Array
    text: dict[str, jax.Array] | None


class UNet(nn.Module):
    """The network of `unet`, whose docstring explains the fields."""

    image_size: tuple[int, int]
    out_channels: int
    channels: int
    multipliers: tuple[float, ...]
    num_res_blocks: tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    num_heads: int
    head_channels: int | None
    conditioning: Conditioning
    resample: Literal["conv", "resblock"]
    embedding: layers.Flavour
    label_table: int
    low_res_method: str
    pooled_text: bool
    vectors: tuple[str, ...]
    dropout: float
    remat: bool
    dtype: Any
    groups: int
    norm_epsilon: float
    skip_scale: float
    down_padding: Literal["same", "symmetric"]

    def _block(self, features: int, name: str, resample: Any = None) -> nn.Module:
        cls = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        return cls(
            features, self.groups, self.norm_epsilon, self.conditioning, self.dropout, self.dtype, resample,
            self.skip_scale, name=name,
        )  # fmt: skip

    def _attention(self, channels: int, name: str) -> nn.Module:
        heads = channels // self.head_channels if self.head_channels else self.num_heads
        cls = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        return cls(heads, self.groups, self.norm_epsilon, self.dtype, self.skip_scale, name=name)

    def _embed(self, noise: jax.Array, cond: dict[str, Any]) -> jax.Array:
        """The noise level, augmentation level, class label and pooled text, summed: [B, 4 * channels] float32."""
        width = 4 * self.channels
        sinusoid = lambda value: layers.sinusoidal_embedding(value, self.channels, self.embedding)  # noqa: E731
        emb = layers.MLPEmbedding(width, name="time_embedding")(sinusoid(noise))
        if "aug_level" in cond:
            emb += layers.MLPEmbedding(width, name="aug_embedding")(sinusoid(cond["aug_level"]))
        if "label" in cond:
            table = nn.Embed(self.label_table, width, embedding_init=layers.normal_init(), name="label_embedding")
            emb += table(cond["label"])
        if self.pooled_text:
            pooled = nn.LayerNorm(epsilon=1e-5, name="pooled_norm")(cond["text"]["pooled"])
            emb += layers.MLPEmbedding(width, name="pooled_embedding")(pooled)
        for key in self.vectors:
            emb += layers.MLPEmbedding(width, name=f"{key}_embedding")(cond[key])
        return emb

    def _stem_input(self, x: jax.Array, cond: dict[str, Any]) -> jax.Array:
        """x with the conditioning images concatenated, low_res resized to x's size."""
        parts = [x]
        if "low_res" in cond:
            low_res = cond["low_res"]
            shape = (*x.shape[:3], low_res.shape[-1])
            parts.append(jax.image.resize(low_res, shape, method=self.low_res_method))
        parts += [cond[key] for key in ("image", "mask") if key in cond]
        return jnp.concatenate(parts, axis=-1)

    def _stage(self, h: jax.Array, width: int, attend: bool, name: str, embedded: Embedded, train: bool) -> jax.Array:
        """A residual block, and attention after it where the level has it."""
        h = self._block(width, f"{name}_res")(h, embedded.emb, train)
        return self._attention(width, f"{name}_attn")(h, embedded.text) if attend else h

    @property
    def levels(self) -> list[tuple[int, bool]]:
        """The width of each level, and whether its blocks are followed by attention."""
        widths = [round(self.channels * m) for m in self.multipliers]
        attends = checks.attention_levels(self.image_size, self.attention_resolutions, len(widths))
        return list(zip(widths, attends, strict=True))

    def encode(self, x: jax.Array, noise: jax.Array, cond: dict[str, Any], train: bool) -> tuple[list[jax.Array], Embedded]:
        """Run from the image to the middle: the features after each part, the middle's last, and what was embedded."""
        checks.check_sizes(x, cond, 2 ** (len(self.multipliers) - 1))
        emb = self._embed(noise, cond)
        embedded = Embedded(emb, cond["text"] if "tokens" in cond.get("text", {}) else None)
        levels = self.levels
        h = layers.conv(levels[0][0], 3, "stem", self.dtype)(self._stem_input(x, cond).astype(self.dtype))
        found = [h]
        for level, (width, attend) in enumerate(levels):
            for i in range(self.num_res_blocks[level]):
                h = self._stage(h, width, attend, f"down{level}_{i}", embedded, train)
                found.append(h)
            if level < len(levels) - 1:
                if self.resample == "resblock":
                    h = self._block(width, f"down{level}_resample", "down")(h, emb, train)
                else:
                    h = layers.Downsample(self.down_padding, self.dtype, name=f"down{level}_resample")(h)
                found.append(h)
        width = levels[-1][0]
        h = self._stage(h, width, True, "middle_0", embedded, train)
        return [*found, self._block(width, "middle_1_res")(h, emb, train)], embedded

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array, cond: dict[str, Any], train: bool = False) -> jax.Array:
        (*skips, h), embedded = self.encode(x, noise, cond, train)
        for level, (width, attend) in reversed(list(enumerate(self.levels))):
            for i in range(self.num_res_blocks[level] + 1):
                h = self._stage(jnp.concatenate([h, skips.pop()], -1), width, attend, f"up{level}_{i}", embedded, train)
            if level > 0:
                if self.resample == "resblock":
                    h = self._block(width, f"up{level}_resample", "up")(h, embedded.emb, train)
                else:
                    h = layers.Upsample(self.dtype, name=f"up{level}_resample")(h)

        h = nn.silu(layers.GroupNorm(self.groups, self.norm_epsilon, name="head_norm")(h))
        return layers.conv(self.out_channels, 3, "head", jnp.float32, zero=True)(h)


def _cond_spec(
    size: tuple[int, int], num_classes: int, low_res: tuple[int, int, int], image_channels: int, mask: bool, aug_level: bool,
    tokens: tuple[int, int], pooled_dim: int, vectors: Mapping[str, int],
) -> dict[str, Any]:  # fmt: skip
    """What the network takes besides x and the noise level; `low_res` is (h, w, channels), `tokens` (length, features)."""
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    text = {"tokens": array(*tokens), "mask": array(tokens[0], dtype=jnp.bool_)} if tokens[1] else {}
    if pooled_dim:
        text["pooled"] = array(pooled_dim)
    spec = {
        "label": array(dtype=jnp.int32) if num_classes else None,
        "low_res": array(*low_res) if low_res[2] else None,
        "image": array(*size, image_channels) if image_channels else None,
        "mask": array(*size, 1) if mask else None,
        "aug_level": array() if aug_level else None,
        "text": text or None,
        **{key: array(dim) for key, dim in vectors.items()},
    }
    return {key: value for key, value in spec.items() if value is not None}


@part("network", "unet")
def unet(
    image_size: Size,
    in_channels: Count = 3,
    out_channels: Count | None = None,
    channels: Count = 128,
    multipliers: Sequence[Positive] = (1, 2, 2, 2),
    num_res_blocks: Count | Sequence[Count] = 2,
    attention_resolutions: Sequence[Count] = (16,),
    num_heads: Count = 1,
    head_channels: Count | None = None,
    conditioning: Conditioning = "adagn",
    resample: Literal["conv", "resblock"] = "conv",
    embedding: layers.Flavour = "adm",
    num_classes: Natural = 0,
    null_class: bool = False,
    low_res_channels: Natural = 0,
    low_res_size: Size | None = None,
    low_res_method: checks.Resizing = "bilinear",
    image_channels: Natural = 0,
    mask: bool = False,
    aug_level: bool = False,
    context_dim: Natural = 0,
    context_length: Count = 77,
    pooled_dim: Natural = 0,
    vectors: Mapping[str, int] | None = None,
    dropout: Probability = 0.0,
    remat: bool = False,
    dtype: checks.Dtype = "float32",
    groups: Count = 32,
    norm_epsilon: Positive = 1e-5,
    skip_scale: float = 1.0,
    down_padding: Literal["same", "symmetric"] = "symmetric",
) -> Network:
    """Build the U-Net of DDPM (arXiv 2006.11239), improved DDPM (2102.09672), ADM (2105.05233) and their descendants.

    Attention projects to [q, k, v][head][width]. Of ADM's published weights only ImageNet-64's and the classifiers' pools are
    packed so (the "new" order); the others are [head][q, k, v][width] ("legacy") and are rearranged when they are converted.

    Args:
      image_size: H = W, or (H, W), in pixels.
      in_channels: channels of the noisy image x.
      out_channels: `in_channels` by default; twice that where the reverse variance is learned.
      channels: the base width; level l has `channels * multipliers[l]`, the embeddings 4 * `channels`.
      num_res_blocks: blocks per level on the way down (one more on the way up), one number or one a level.
      attention_resolutions: the smaller sides of feature maps at which every block is followed by attention; the middle
        always has it.
      num_heads, head_channels: the number of heads, or their width, which takes precedence.
      conditioning: how the embedding enters a block, "adagn" or "additive".
      resample: "conv" (strided convolution; nearest and convolution) or "resblock" (BigGAN up/down blocks).
      embedding: the flavour of the sinusoids, "ddpm" or "adm".
      num_classes: above 0 the network takes `cond["label"]` [B] int32.
      null_class: one more row in the label table, index `num_classes`, which stands for "no label".
      low_res_channels, low_res_size, low_res_method: above 0 the network takes `cond["low_res"]` [B, h, w, c], resizes
        it to x's size and concatenates it.
      image_channels, mask: `cond["image"]` [B, H, W, c] and `cond["mask"]` [B, H, W, 1] are concatenated to x.
      aug_level: `cond["aug_level"]` [B] float32, on the scale 0..1000, has an embedding of its own.
      context_dim, context_length: above 0, `cond["text"]["tokens"]` [B, L, D] with `["mask"]` [B, L] join the keys of
        every attention; L may differ from `context_length` when applied.
      pooled_dim: above 0, `cond["text"]["pooled"]` [B, D] is added to the embedding.
      vectors: lengths by name: the network takes `cond[name]` [B, length], each with an embedding of its own that is added.
      dropout: in residual blocks, before their last convolution.
      remat: recompute blocks in the backward pass instead of keeping their activations.
      dtype: of the computation, "bfloat16" on accelerators; parameters, statistics and output stay float32.

    Raises:
      ConfigError: sizes, channels, groups or heads that do not divide; the message names values that do.

    >>> net = unet(16, in_channels=1, channels=8, groups=4, multipliers=(1, 2), attention_resolutions=(8,))
    >>> jax.eval_shape(net.apply, net.shapes(), *net.example_inputs(batch=2)).shape
    (2, 16, 16, 1)
    """
    size, multipliers, attention = size_of(image_size), tuple(multipliers), tuple(attention_resolutions)
    blocks = (num_res_blocks,) * len(multipliers) if isinstance(num_res_blocks, int) else tuple(num_res_blocks)
    if len(blocks) != len(multipliers):
        raise ConfigError(f"unet: num_res_blocks has {len(blocks)} entries, multipliers has {len(multipliers)} levels")
    checks.check_null_class("unet", num_classes, null_class)
    widths = checks.level_widths(channels, multipliers)
    checks.check_levels("unet", size, widths)
    attends = checks.attention_levels(size, attention, len(widths))
    attends[-1] = True  # the middle block
    checks.check_widths(widths, attends, groups, num_heads, head_channels)

    low_res = size_of(low_res_size) if low_res_size else (size[0] // 2, size[1] // 2)
    spec = _cond_spec(
        size, num_classes, (*low_res, low_res_channels), image_channels, mask, aug_level, (context_length, context_dim),
        pooled_dim, dict(vectors or {}),
    )  # fmt: skip
    module = UNet(
        size, out_channels or in_channels, channels, multipliers, blocks, attention, num_heads, head_channels,
        conditioning, resample, embedding, num_classes + null_class, low_res_method, bool(pooled_dim),
        tuple(vectors or ()), dropout, remat,
        jnp.dtype(dtype), groups, norm_epsilon, skip_scale, down_padding,
    )  # fmt: skip
    return Network(module, Spec.image(size, in_channels), spec)
