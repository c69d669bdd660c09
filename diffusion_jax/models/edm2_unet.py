"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, configuration G, arXiv 2312.02696)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models import checks
from diffusion_jax.models.layers import Dropout, downsample_average, upsample_nearest
from diffusion_jax.models.magnitude import (
    CLIP,
    Fourier,
    Gain,
    MPConv,
    fourier_constants,
    mp_cat,
    mp_fourier,
    mp_silu,
    mp_sum,
    normalize,
    normalize_kernel,
)
from diffusion_jax.models.network import Network, Params, constrain
from diffusion_jax.registry import part
from diffusion_jax.spec import Size, Spec, size_of
from diffusion_jax.values import Count, Natural, Probability

_BALANCE = 0.3  # the share of the branch in residual and attention sums
_UNCERTAINTY_FEATURES = 128

CHANNELS = {"XXS": 64, "XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
"""Base channels of the published sizes."""


class Block(nn.Module):
    """A residual block, and attention where `heads` is above 0.

    Args:
      features: output channels.
      flavour: "encoder" resamples, projects and normalises its input first; "decoder" projects the shortcut last.
      heads: of cosine attention: queries, keys and values are normalised over each head's channels.
      resample: "up", "down" or None, of the block's input.
    """

    features: int
    flavour: Literal["encoder", "decoder"]
    heads: int
    dropout: float
    dtype: Any
    resample: Literal["up", "down"] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        x = constrain(x)
        if self.resample:
            x = upsample_nearest(x) if self.resample == "up" else downsample_average(x)
        conv = lambda features, kernel, name: MPConv(features, kernel, self.dtype, name=name)  # noqa: E731
        project = x.shape[-1] != self.features
        if self.flavour == "encoder":
            x = normalize(conv(self.features, 1, "skip")(x) if project else x)
        y = conv(self.features, 3, "conv_in")(mp_silu(x))
        scale = 1 + MPConv(self.features, 0, name="emb")(emb, Gain(name="emb_gain")())
        y = mp_silu(y * scale[:, None, None].astype(self.dtype))
        y = conv(self.features, 3, "conv_out")(Dropout(self.dropout, name="dropout")(y, train))
        if self.flavour == "decoder" and project:
            x = conv(self.features, 1, "skip")(x)
        x = mp_sum(x, y, _BALANCE)
        if self.heads:
            x = mp_sum(x, self._attend(x, conv), _BALANCE)
        return jnp.clip(x, -CLIP, CLIP)

    def _attend(self, x: jax.Array, conv: Any) -> jax.Array:
        batch, height, width, channels = x.shape
        shape = (batch, height * width, self.heads, channels // self.heads)
        split = jnp.split(conv(3 * channels, 1, "qkv")(x), 3, axis=-1)
        query, key, value = (normalize(part.reshape(shape)) for part in split)
        attended = jax.nn.dot_product_attention(query, key, value)
        return conv(channels, 1, "attention_out")(attended.reshape(x.shape))


class EDM2UNet(nn.Module):
    """The network of `edm2`, whose docstring explains the fields."""

    image_size: tuple[int, int]
    out_channels: int
    channels: int
    head_channels: int
    num_classes: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    dropout: float
    remat: bool
    dtype: Any
    fourier: Fourier
    uncertainty_fourier: Fourier

    def _embed(self, noise: jax.Array, cond: Mapping[str, Any]) -> jax.Array:
        """The noise level and the class label, [B, widest level] float32."""
        width = self.channels * max(self.multipliers)
        emb = MPConv(width, 0, name="noise_embedding")(mp_fourier(noise, self.fourier))
        if self.num_classes:
            # A label out of range, the null class, has the code 0.
            code = jax.nn.one_hot(cond["label"], self.num_classes) * self.num_classes**0.5
            emb = mp_sum(emb, MPConv(width, 0, name="label_embedding")(code))
        return mp_silu(emb)

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array, cond: Mapping[str, Any], train: bool = False) -> jax.Array:
        checks.check_sizes(x, cond, 2 ** (len(self.multipliers) - 1))
        emb = self._embed(noise, cond)
        cls = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

        attends = checks.attention_levels(self.image_size, self.attention_resolutions, len(self.multipliers))

        def block(h: jax.Array, level: int, flavour: Any, name: str, attend: bool | None = None, resample: Any = None) -> Any:
            width = h.shape[-1] if resample else self.channels * self.multipliers[level]
            if attend is None:
                attend = attends[level]
            heads = width // self.head_channels if attend else 0
            return cls(width, flavour, heads, self.dropout, self.dtype, resample, name=name)(h, emb, train)

        # A channel of ones takes the place of biases.
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        h = MPConv(self.channels * self.multipliers[0], 3, self.dtype, name="stem")(h)
        skips, last = [h], len(self.multipliers) - 1
        for level in range(last + 1):
            if level:
                h = block(h, level, "encoder", f"down{level}_resample", False, "down")
                skips.append(h)
            for i in range(self.num_res_blocks):
                h = block(h, level, "encoder", f"down{level}_{i}")
                skips.append(h)
        h = block(h, last, "decoder", "middle_0", True)
        h = block(h, last, "decoder", "middle_1", False)
        for level in reversed(range(last + 1)):
            if level < last:
                h = block(h, level, "decoder", f"up{level}_resample", False, "up")
            for i in range(self.num_res_blocks + 1):
                h = block(mp_cat(h, skips.pop()), level, "decoder", f"up{level}_{i}")
        MPConv(1, 0, name="uncertainty")(mp_fourier(noise, self.uncertainty_fourier))  # of `EDM2Network.log_variance`
        return MPConv(self.out_channels, 3, self.dtype, name="head")(h, Gain(name="head_gain")()).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class EDM2Network(Network):
    """A magnitude-preserving network: its stored weights are kept normalised, and it knows how uncertain it is."""

    def init(self, key: jax.Array) -> Params:
        """Return fresh parameters, normalised."""
        return self.project(super().init(key))

    def project(self, params: Params) -> Params:
        """Bring every kernel's columns back to root mean square 1; training does so after each step.

        What the network computes stays the same, and the effective learning rate does not decay as weights grow: the
        paper's forced weight normalization.
        """
        kernel = lambda path, leaf: normalize_kernel(leaf) if path[-1].key == "kernel" else leaf  # noqa: E731
        return jax.tree_util.tree_map_with_path(kernel, params)

    def log_variance(self, params: Params, noise: jax.Array) -> jax.Array:
        """Return the learned logarithm of the loss at noise levels [B]: u in (lambda / exp(u)) err^2 + u; float32 [B]."""
        head = MPConv(1, 0).apply({"params": params["uncertainty"]}, mp_fourier(noise, self.module.uncertainty_fourier))
        return head[:, 0]


@part("network", "edm2")
def edm2(
    image_size: Size,
    in_channels: Count = 3,
    out_channels: Count | None = None,
    channels: Count = 192,
    multipliers: Sequence[Count] = (1, 2, 3, 4),
    num_res_blocks: Count = 3,
    attention_resolutions: Sequence[Count] = (16, 8),
    head_channels: Count = 64,
    num_classes: Natural = 0,
    null_class: bool = False,
    dropout: Probability = 0.0,
    remat: bool = False,
    dtype: checks.Dtype = "float32",
    fourier: Sequence[Sequence[float]] = (),
    uncertainty_fourier: Sequence[Sequence[float]] = (),
) -> Network:
    """Build EDM2's U-Net: normalised weights, no biases, no group normalisation, every activation at unit magnitude.

    The noise level it is told is c_noise = ln(sigma) / 4, as the process with the prediction "edm" gives it. Published
    sizes differ in `channels` alone: see `CHANNELS`; from M up they have dropout 0.1 where that helps.

    Args:
      image_size: H = W, or (H, W), in pixels.
      in_channels, out_channels: of the image; the output has as many by default.
      channels, multipliers: level l has `channels * multipliers[l]`.
      num_res_blocks: blocks a level on the way down, one more on the way up.
      attention_resolutions, head_channels: the smaller sides of feature maps with attention, and how wide a head is.
      num_classes: above 0 the network takes `cond["label"]` [B] int32, as one-hot * sqrt(num_classes).
      null_class: the label `num_classes` stands for "no label"; its code is all zeros, and takes no parameters.
      dropout, remat, dtype: as in `unet`.
      fourier: (frequencies, phases) of the noise level's embedding, each as long as the first level is wide, in radians; ()
        draws them with a fixed seed. They are no parameters: published weights bring their own, see `interop.edm2`.
      uncertainty_fourier: the same for `EDM2Network.log_variance`, each of 128 numbers.

    Raises:
      ConfigError: sizes, channels or heads that do not divide, constants of another length.

    Source: Karras et al. 2024, section 2 and appendix B (arXiv 2312.02696).

    >>> net = edm2(16, channels=8, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), head_channels=8)
    >>> jax.eval_shape(net.apply, net.shapes(), *net.example_inputs(batch=2)).shape
    (2, 16, 16, 3)
    """
    size, multipliers, attention = size_of(image_size), tuple(multipliers), tuple(attention_resolutions)
    checks.check_null_class("edm2", num_classes, null_class)
    widths = checks.level_widths(channels, multipliers)
    checks.check_levels("edm2", size, widths)
    attends = checks.attention_levels(size, attention, len(widths))
    attends[-1] = True
    checks.check_widths(widths, attends, 1, 1, head_channels)
    spec = {"label": jax.ShapeDtypeStruct((), jnp.int32)} if num_classes else {}
    module = EDM2UNet(
        size, out_channels or in_channels, channels, head_channels, num_classes, multipliers, num_res_blocks, attention,
        dropout, remat, jnp.dtype(dtype), _constants("fourier", fourier, widths[0]),
        _constants("uncertainty_fourier", uncertainty_fourier, _UNCERTAINTY_FEATURES),
    )  # fmt: skip
    return EDM2Network(module, Spec.image(size, in_channels), spec)


def _constants(field: str, given: Sequence[Sequence[float]], features: int) -> Fourier:
    """The given constants of Fourier features, or the default ones."""
    if not given:
        return fourier_constants(features)
    if [len(part) for part in given] != [features, features]:
        raise ConfigError(
            f"edm2: {field} must be {features} frequencies and as many phases, got {[len(part) for part in given]}"
        )
    frequencies, phases = (tuple(float(x) for x in part) for part in given)
    return frequencies, phases
