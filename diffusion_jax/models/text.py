"""How networks take a sequence of text embeddings: attention over it, and a pooled vector of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.layers import GroupNorm, dense_init, normal_init
from diffusion_jax.models.partitioning import constrain

Text = Mapping[str, jax.Array]
"""{"tokens": [B, L, D], "mask": [B, L], nonzero where there is a token}."""


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
