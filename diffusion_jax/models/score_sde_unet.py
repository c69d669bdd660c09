"""The U-Nets of the score SDEs, DDPM++ and NCSN++, as EDM trains them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.models import checks, layers
from diffusion_jax.models.blocks import AttentionBlock, ResidualBlock
from diffusion_jax.models.layers import downsample
from diffusion_jax.models.network import Network
from diffusion_jax.registry import part
from diffusion_jax.spec import Size, Spec, size_of
from diffusion_jax.values import Count, Natural, Probability

_SKIP_SCALE = math.sqrt(0.5)
_NEAR_ZERO = 1e-10  # of the variance: the weights are 1e-5 of their usual size
_QKV = 0.2
_EPSILON = 1e-6


def fourier_frequencies(width: int, scale: float = 16.0) -> tuple[float, ...]:
    """Return the default frequencies of the Fourier features, width / 2 normal numbers of a fixed seed, times `scale`."""
    return tuple(float(f) for f in np.float32(scale * np.random.default_rng(0).standard_normal(width // 2)))


class SongUNet(nn.Module):
    """The network of `song_unet`, whose docstring explains the fields."""

    image_size: tuple[int, int]
    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    embedding: Literal["sinusoid", "fourier"]
    frequencies: tuple[float, ...]
    pyramid: bool
    taps: tuple[int, ...]
    num_classes: int
    augment_dim: int
    dropout: float
    remat: bool
    dtype: Any

    def _block(self, features: int, name: str, resample: Any = None) -> nn.Module:
        cls = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        return cls(
            features, 0, _EPSILON, "additive", self.dropout, self.dtype, resample, _SKIP_SCALE, self.taps, True, _NEAR_ZERO,
            name=name,
        )  # fmt: skip

    def _attention(self, name: str) -> nn.Module:
        cls = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        return cls(1, 0, _EPSILON, self.dtype, _SKIP_SCALE, _QKV, _NEAR_ZERO, name=name)

    def _embed(self, noise: jax.Array, cond: dict[str, Any]) -> jax.Array:
        """The noise level, with label and augmentation added before the two layers: [B, 4 * channels] float32."""
        if self.embedding == "fourier":
            angles = noise.astype(jnp.float32)[:, None] * (2 * math.pi * jnp.asarray(self.frequencies, jnp.float32))
            emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        else:
            emb = layers.sinusoidal_embedding(noise, self.channels, "ddpm")
        dense = lambda name, **kwargs: nn.Dense(emb.shape[-1], kernel_init=layers.dense_init(), name=name, **kwargs)  # noqa: E731
        if "label" in cond:
            # A label beyond the classes is all zeros: no label.
            one_hot = jax.nn.one_hot(cond["label"], self.num_classes) * math.sqrt(self.num_classes)
            emb = emb + dense("label_embedding")(one_hot)
        if "augment" in cond:
            emb = emb + dense("augment_embedding", use_bias=False)(cond["augment"].astype(jnp.float32))
        return layers.MLPEmbedding(4 * self.channels, name="time_embedding")(emb)

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array, cond: dict[str, Any], train: bool = False) -> jax.Array:
        checks.check_sizes(x, cond, 2 ** (len(self.multipliers) - 1))
        emb = self._embed(noise, cond)
        widths = [self.channels * m for m in self.multipliers]
        last = len(widths) - 1
        attends = checks.attention_levels(self.image_size, self.attention_resolutions, len(widths))

        def stage(h: jax.Array, width: int, attend: bool, name: str) -> jax.Array:
            h = self._block(width, f"{name}_res")(h, emb, train)
            return self._attention(f"{name}_attn")(h) if attend else h

        pyramid = x.astype(self.dtype)
        h = layers.conv(self.channels, 3, "stem", self.dtype)(pyramid)
        skips = [h]
        for level, width in enumerate(widths):
            if level > 0:
                h = self._block(h.shape[-1], f"down{level}_resample", "down")(h, emb, train)
                if self.pyramid:
                    # The convolution sees as many zeros around the image as the filter will take away.
                    wide = layers.conv(h.shape[-1], 3, f"down{level}_pyramid", self.dtype, padding=len(self.taps) // 2)(pyramid)
                    h = pyramid = (h + downsample(wide, self.taps, pad=0)) * _SKIP_SCALE
                skips.append(h)
            for i in range(self.num_res_blocks):
                h = stage(h, width, attends[level], f"down{level}_{i}")
                skips.append(h)

        h = stage(h, widths[-1], True, "middle_0")
        h = self._block(widths[-1], "middle_1_res")(h, emb, train)

        for level in reversed(range(len(widths))):
            if level < last:
                h = self._block(h.shape[-1], f"up{level}_resample", "up")(h, emb, train)
            for i in range(self.num_res_blocks + 1):
                attend = attends[level] and i == self.num_res_blocks
                h = stage(jnp.concatenate([h, skips.pop()], -1), widths[level], attend, f"up{level}_{i}")

        h = nn.silu(layers.GroupNorm(0, _EPSILON, name="head_norm")(h))
        return layers.conv(self.out_channels, 3, "head", jnp.float32, init=_NEAR_ZERO)(h)


@part("network", "song_unet")
def song_unet(
    image_size: Size,
    in_channels: Count = 3,
    out_channels: Count | None = None,
    channels: Count = 128,
    multipliers: Sequence[Count] = (2, 2, 2),
    num_res_blocks: Count = 4,
    attention_resolutions: Sequence[Count] = (16,),
    embedding: Literal["sinusoid", "fourier"] = "sinusoid",
    frequencies: Sequence[float] = (),
    pyramid: bool = False,
    resample_filter: Sequence[int] = (1, 1),
    num_classes: Natural = 0,
    null_class: bool = False,
    augment_dim: Natural = 0,
    dropout: Probability = 0.0,
    remat: bool = False,
    dtype: checks.Dtype = "float32",
) -> Network:
    """Build DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456) as EDM has them (Karras et al. 2022, arXiv 2206.00364).

    Unlike in `unet`, sums with branches and attention are scaled by 1/sqrt(2), label and augmentation enter before the
    layers of the embedding, attention has one head, and on the way up it follows only the last block of a level.

    Args:
      image_size: H = W, or (H, W), in pixels.
      in_channels: channels of the noisy image x.
      out_channels: `in_channels` by default.
      channels: the base width; level l has `channels * multipliers[l]`, a multiple of 4, and of 128 above 128.
      num_res_blocks: blocks per level on the way down; one more on the way up.
      attention_resolutions: the smaller sides of feature maps with attention.
      embedding: of the noise level: "sinusoid" (`channels` numbers) or "fourier" (twice as many).
      frequencies: of the Fourier features, `channels` of them; () draws them, times 16, with a fixed seed. They are no
        parameters: published weights bring their own, see `interop.edm`.
      pyramid: the downsampled input, through a convolution, joins every level of the encoder (NCSN++).
      resample_filter: (1, 1) or (1, 3, 3, 1).
      num_classes: above 0 the network takes `cond["label"]` [B] int32.
      null_class: accepted for `unet`'s sake: the label `num_classes` is "no label", a one-hot of zeros, and has no weights.
      augment_dim: above 0 the network takes `cond["augment"]` [B, augment_dim] float32, zeros where nothing was augmented.
      dropout: in residual blocks, before their last convolution.
      remat: recompute blocks in the backward pass instead of keeping their activations.
      dtype: of the computation, "bfloat16" on accelerators; parameters, statistics and output stay float32.

    Raises:
      ConfigError: sizes or channels that do not divide, unknown names, another number of frequencies.

    >>> net = song_unet(8, channels=8, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), augment_dim=9)
    >>> sorted(net.cond_keys)
    ['augment']
    """
    size, multipliers, taps = size_of(image_size), tuple(multipliers), tuple(resample_filter)
    checks.check_null_class("song_unet", num_classes, null_class)
    if taps not in ((1, 1), (1, 3, 3, 1)):
        raise ConfigError(f"song_unet: resample_filter must be (1, 1) or (1, 3, 3, 1), got {taps}")
    widths = [channels, *checks.level_widths(channels, multipliers)]
    for width in widths:
        step = 4 if width < 128 else 32
        if width % step:
            raise ConfigError(f"song_unet: {width} channels do not divide into its groups; use a multiple of {step}")
    checks.check_levels("song_unet", size, multipliers)
    if embedding == "fourier":
        frequencies = tuple(float(f) for f in frequencies) or fourier_frequencies(2 * channels)
        if len(frequencies) != channels:
            raise ConfigError(f"song_unet: {channels} channels need as many frequencies, got {len(frequencies)}")
    elif frequencies:
        raise ConfigError("song_unet: frequencies are those of embedding='fourier'")
    spec = {"label": jax.ShapeDtypeStruct((), jnp.int32)} if num_classes else {}
    if augment_dim:
        spec["augment"] = jax.ShapeDtypeStruct((augment_dim,), jnp.float32)
    module = SongUNet(
        size, out_channels or in_channels, channels, multipliers, num_res_blocks, tuple(attention_resolutions),
        embedding, tuple(frequencies), pyramid, taps, num_classes, augment_dim, dropout, remat, jnp.dtype(dtype),
    )  # fmt: skip
    return Network(module, Spec.image(size, in_channels), spec)
