"""Blocks of U-Nets: residual, attention, and how a sequence of text embeddings is attended to and pooled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.layers import Dropout, GroupNorm, conv, dense_init, downsample, normal_init, upsample
from diffusion_jax.models.network import constrain

Conditioning = Literal["adagn", "additive"]
Resampling = Literal["up", "down"]
Text = Mapping[str, jax.Array]
"""{"tokens": [B, L, D], "mask": [B, L], nonzero where there is a token}."""


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, with the embedding injected between, and a shortcut.

    Args:
      features: output channels.
      conditioning: "additive" adds a projection of the embedding after the first convolution (DDPM); "adagn" scales
        and shifts the second normalisation (ADM).
      resample: resample the branch before its first convolution, and the shortcut, as BigGAN does.
      skip_scale: multiplies the sum of branch and shortcut (1/sqrt(2) in SR3 and NCSN++, 1 elsewhere).
      taps: of the filter that resamples; (1, 1) is nearest neighbour and 2x2 means, (1, 3, 3, 1) smoother.
      project_resampled: whether a resampled shortcut has a convolution even where its width stays.
      out_init: the scale (of the variance) at which the last convolution starts.

    Source: Dhariwal & Nichol 2021, section 3 (arXiv 2105.05233).
    """

    features: int
    groups: int
    epsilon: float
    conditioning: Conditioning
    dropout: float
    dtype: Any
    resample: Resampling | None = None
    skip_scale: float = 1.0
    taps: tuple[int, ...] = (1, 1)
    project_resampled: bool = False
    out_init: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        x = constrain(x)
        norm = dict(groups=self.groups, epsilon=self.epsilon, dtype=self.dtype)
        h = nn.silu(GroupNorm(**norm, name="norm_in")(x))
        if self.resample:
            resize = upsample if self.resample == "up" else downsample
            h, x = resize(h, self.taps), resize(x, self.taps)
        h = conv(self.features, 3, "conv_in", self.dtype)(h)
        adaptive = self.conditioning == "adagn"
        width = 2 * self.features if adaptive else self.features
        injected = nn.Dense(width, kernel_init=dense_init(), name="emb")(nn.silu(emb))
        if adaptive:
            h = GroupNorm(**norm, name="norm_out")(h, *jnp.split(injected, 2, axis=-1))
        else:
            h = GroupNorm(**norm, name="norm_out")(h + injected[:, None, None].astype(self.dtype))
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), train)
        h = conv(self.features, 3, "conv_out", self.dtype, init=self.out_init)(h)
        if x.shape[-1] != self.features or (self.resample and self.project_resampled):
            x = conv(self.features, 1, "shortcut", self.dtype)(x)
        return (x + h) * self.skip_scale if self.skip_scale != 1.0 else x + h


class AttentionBlock(nn.Module):
    """Self-attention over positions; a token sequence, if given, joins the keys and values.

    Args:
      heads: the number of heads.
      skip_scale: as in `ResidualBlock`.
      qkv_init, out_init: the scales (of the variance) at which the projections start.

    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233); tokens among the keys as in Imagen, section D.3.1
    (arXiv 2205.11487), normalised by LayerNorm.
    """

    heads: int
    groups: int
    epsilon: float
    dtype: Any
    skip_scale: float = 1.0
    qkv_init: float = 1.0
    out_init: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, text: dict[str, jax.Array] | None = None) -> jax.Array:
        x = constrain(x)
        batch, height, width, channels = x.shape
        split = lambda y: y.reshape(batch, y.shape[1], self.heads, channels // self.heads)  # noqa: E731
        init = dense_init(self.qkv_init)
        project = lambda name, n, y: nn.Dense(n, kernel_init=init, dtype=self.dtype, name=name)(y)  # noqa: E731
        h = GroupNorm(self.groups, self.epsilon, self.dtype, name="norm")(x).reshape(batch, -1, channels)
        query, key, value = map(split, jnp.split(project("qkv", 3 * channels, h), 3, axis=-1))
        mask = None
        if text is not None:
            tokens = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="text_norm")(text["tokens"])
            text_key, text_value = map(split, jnp.split(project("text_kv", 2 * channels, tokens), 2, axis=-1))
            key, value = jnp.concatenate([text_key, key], 1), jnp.concatenate([text_value, value], 1)
            seen = jnp.pad(text["mask"].astype(bool), ((0, 0), (0, h.shape[1])), constant_values=True)
            mask = seen[:, None, None, :]
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask)
        out = nn.Dense(channels, kernel_init=dense_init(self.out_init), dtype=self.dtype, name="out")
        x = x + out(attended.reshape(batch, -1, channels)).reshape(x.shape)
        return x * self.skip_scale if self.skip_scale != 1.0 else x


def _split(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)


class TextAttention(nn.Module):
    """Attention of positions to a token sequence and, where `own`, to one another; added to the input.

    Beside the tokens there is a learned null key and value, so that a text without tokens has something to be attended to.

    Args:
      heads: that share the inner width, twice the channels.
      own: positions are among the keys (self-attention with text among the keys); otherwise text alone (cross-attention).

    Source: Saharia et al. 2022, sections 2.1 and D (arXiv 2205.11487): LayerNorm on the embeddings; inner width 2C.
    """

    heads: int
    own: bool
    groups: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, text: Text | None) -> jax.Array:
        x = constrain(x)
        batch, height, width, channels = x.shape
        inner = 2 * channels
        dense = lambda features, name: nn.Dense(features, kernel_init=dense_init(), dtype=self.dtype, name=name)  # noqa: E731
        h = GroupNorm(self.groups, self.epsilon, self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        query, pairs, seen = dense(inner, "query")(h), [], []
        if self.own:
            pairs.append(dense(2 * inner, "own_kv")(h))
            seen.append(jnp.ones(h.shape[:2], bool))
        if text is not None:
            tokens = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="text_norm")(text["tokens"])
            null = self.param("null_kv", normal_init(0.02), (2 * inner,), jnp.float32).astype(self.dtype)
            pairs += [dense(2 * inner, "text_kv")(tokens), jnp.broadcast_to(null, (batch, 1, 2 * inner))]
            seen += [text["mask"].astype(bool), jnp.ones((batch, 1), bool)]
        key, value = jnp.split(jnp.concatenate(pairs, axis=1), 2, axis=-1)
        mask = jnp.concatenate(seen, axis=1)[:, None, None, :]
        attended = jax.nn.dot_product_attention(*(_split(part, self.heads) for part in (query, key, value)), mask=mask)
        out = nn.Dense(channels, kernel_init=dense_init(0.0), dtype=self.dtype, name="out")
        return x + out(attended.reshape(batch, height * width, inner)).reshape(x.shape)


class TextPool(nn.Module):
    """A vector of a token sequence, by attention of its mean to the mean and all tokens: [B, features] float32.

    Source: Saharia et al. 2022, section 2.1 (arXiv 2205.11487): pooled text is added to the noise level's embedding.
    """

    features: int
    heads: int = 8

    @nn.compact
    def __call__(self, text: Text) -> jax.Array:
        tokens = nn.LayerNorm(epsilon=1e-5, name="norm")(text["tokens"].astype(jnp.float32))
        seen = text["mask"].astype(bool)
        weight = seen[..., None].astype(jnp.float32)
        mean = (tokens * weight).sum(1, keepdims=True) / jnp.maximum(weight.sum(1, keepdims=True), 1.0)
        dense = lambda features, name: nn.Dense(features, kernel_init=dense_init(), name=name)  # noqa: E731
        both = jnp.concatenate([mean, tokens], axis=1)
        key, value = jnp.split(dense(2 * self.features, "kv")(both), 2, axis=-1)
        parts = (_split(part, self.heads) for part in (dense(self.features, "query")(mean), key, value))
        mask = jnp.pad(seen, ((0, 0), (1, 0)), constant_values=True)[:, None, None, :]
        pooled = jax.nn.dot_product_attention(*parts, mask=mask)
        return dense(self.features, "out")(pooled.reshape(pooled.shape[0], self.features))


class PooledText(nn.Module):
    """A network that takes a pooled vector beside the tokens, given the tokens alone.

    Args:
      network: takes `cond["text"]` of tokens, mask and pooled.
      features: of the pooled vector.
    """

    network: nn.Module
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array, cond: Mapping[str, Any], train: bool = False) -> jax.Array:
        pooled = TextPool(self.features, name="text_pool")(cond["text"])
        return self.network(x, noise, {**cond, "text": {**cond["text"], "pooled": pooled}}, train=train)
