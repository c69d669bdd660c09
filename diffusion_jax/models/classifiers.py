"""Classifiers: of noisy images, ADM's, which is the encoder of a U-Net and a pool; and a small one of clean images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models import checks, layers
from diffusion_jax.models.adm_unet import UNet, unet
from diffusion_jax.models.blocks import Conditioning
from diffusion_jax.models.network import Network
from diffusion_jax.registry import part, register
from diffusion_jax.spec import Size, Spec, size_of
from diffusion_jax.values import Count, Positive, Probability

Pool = Literal["attention", "adaptive", "spatial", "spatial_v2"]

_HIDDEN = 2048  # of the spatial pools


class AttentionPool(nn.Module):
    """Attention of the mean of all positions to them and to itself, with a learned table of positions.

    The tokens are [mean; positions in rows]. The projection `qkv` has the heads as [q, k, v][head][width], which is the
    "new" order of published weights.

    Args:
      heads: the number of heads.
      features: of the output.

    Source: Radford et al. 2021, section 2.4 (arXiv 2103.00020), as Dhariwal & Nichol 2021 use it (arXiv 2105.05233).
    """

    heads: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, features]."""
        batch, _, _, channels = x.shape
        positions = x.reshape(batch, -1, channels)
        tokens = jnp.concatenate([positions.mean(1, keepdims=True), positions], axis=1)
        table = self.param("positions", layers.normal_init(channels**-0.5), tokens.shape[1:], jnp.float32)
        tokens = tokens + table.astype(self.dtype)
        dense = lambda n, name: nn.Dense(n, kernel_init=layers.dense_init(), dtype=self.dtype, name=name)  # noqa: E731
        qkv = dense(3 * channels, "qkv")(tokens)
        query, key, value = (part.reshape(batch, -1, self.heads, channels // self.heads) for part in jnp.split(qkv, 3, axis=-1))
        attended = jax.nn.dot_product_attention(query[:, :1], key, value)  # the mean's answer is all that is read
        return dense(self.features, "out")(attended.reshape(batch, channels)).astype(jnp.float32)


class UNetClassifier(UNet):
    """The network of `unet_classifier`, whose docstring explains the fields; its encoder has the names of `UNet`'s."""

    num_classes: int
    pool: Pool

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array, cond: dict[str, Any], train: bool = False) -> jax.Array:
        features, _ = self.encode(x, noise, cond, train)
        if self.pool in ("spatial", "spatial_v2"):
            means = jnp.concatenate([h.astype(jnp.float32).mean((1, 2)) for h in features], axis=-1)
            return self._spatial(means)
        h = layers.GroupNorm(self.groups, self.norm_epsilon, self.dtype, name="pool_norm")(features[-1])
        h = nn.silu(h)
        if self.pool == "adaptive":
            return nn.Dense(self.num_classes, kernel_init=layers.dense_init(0), name="pool_out")(
                h.astype(jnp.float32).mean((1, 2))
            )
        heads = h.shape[-1] // self.head_channels if self.head_channels else self.num_heads
        return AttentionPool(heads, self.num_classes, self.dtype, name="pool")(h)

    def _spatial(self, means: jax.Array) -> jax.Array:
        """Two layers on the mean of every part's features."""
        h = nn.Dense(_HIDDEN, kernel_init=layers.dense_init(), name="pool_in")(means)
        if self.pool == "spatial_v2":
            h = nn.silu(layers.GroupNorm(32, self.norm_epsilon, name="pool_norm")(h))
        else:
            h = nn.relu(h)
        return nn.Dense(self.num_classes, kernel_init=layers.dense_init(), name="pool_out")(h)


@part("network", "unet_classifier")
def unet_classifier(
    image_size: Size,
    in_channels: Count = 3,
    num_classes: Count = 1000,
    channels: Count = 128,
    multipliers: Sequence[Positive] = (1, 2, 3, 4),
    num_res_blocks: Count | Sequence[Count] = 2,
    attention_resolutions: Sequence[Count] = (32, 16, 8),
    num_heads: Count = 1,
    head_channels: Count | None = 64,
    pool: Pool = "attention",
    conditioning: Conditioning = "adagn",
    resample: Literal["conv", "resblock"] = "resblock",
    embedding: layers.Flavour = "adm",
    dropout: Probability = 0.0,
    groups: Count = 32,
    norm_epsilon: Positive = 1e-5,
    remat: bool = False,
    dtype: checks.Dtype = "float32",
) -> Network:
    """Build a classifier of noisy images: logits [B, classes] of x_t [B, H, W, C] and its noise level [B].

    Args:
      num_classes: the length of the logits.
      pool: how the features become logits. "attention": an `AttentionPool` of the middle's; "adaptive": their mean and
        a linear layer; "spatial": the means of every part of the encoder, and two layers with ReLU; "spatial_v2": the
        same with normalisation and SiLU.
      head_channels, num_heads: of the encoder's attention and of the pool's.
      (more): the fields of `unet`, of which this is the encoder.

    Raises:
      ConfigError: as `unet`, and an unknown pool or no classes.

    Source: Dhariwal & Nichol 2021, section 4 and appendix I (arXiv 2105.05233).

    >>> net = unet_classifier(8, 1, 10, channels=8, groups=4, multipliers=(1, 2), num_res_blocks=1, head_channels=8)
    >>> jax.eval_shape(net.apply, net.shapes(), *net.example_inputs(batch=2)).shape
    (2, 10)
    """
    trunk = unet(
        image_size, in_channels, channels=channels, multipliers=multipliers, num_res_blocks=num_res_blocks,
        attention_resolutions=attention_resolutions, num_heads=num_heads, head_channels=head_channels,
        conditioning=conditioning, resample=resample, embedding=embedding, dropout=dropout, remat=remat, dtype=dtype,
        groups=groups, norm_epsilon=norm_epsilon,
    )  # fmt: skip
    fields = [field.name for field in dataclasses.fields(UNet) if field.name not in ("parent", "name")]
    module = UNetClassifier(**{name: getattr(trunk.module, name) for name in fields}, num_classes=num_classes, pool=pool)
    return Network(module, trunk.spec, {})


class SmallCNN(nn.Module):
    """Strided convolutions with group normalisation, a feature layer and logits."""

    num_classes: int
    features: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        init = layers.dense_init()
        for level, width in enumerate(self.widths):
            strides = (1, 1) if level == 0 else (2, 2)
            x = nn.Conv(width, (3, 3), strides=strides, use_bias=False, kernel_init=init, name=f"conv{level}")(x)
            x = nn.relu(layers.GroupNorm(8, 1e-5, name=f"norm{level}")(x))
        x = layers.Dropout(0.2, name="dropout_in")(x.reshape(x.shape[0], -1), train)
        features = nn.relu(nn.Dense(self.features, kernel_init=init, name="features")(x))
        hidden = layers.Dropout(0.4, name="dropout_out")(features, train)
        return nn.Dense(self.num_classes, kernel_init=init, name="logits")(hidden), features


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier made functional; see `small_classifier`."""

    module: SmallCNN
    spec: Spec

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Return fresh parameters, a plain nested dict of float32 arrays."""
        return self.module.init(key, jnp.zeros((1, *self.spec.shape)), train=False)["params"]

    def apply(
        self, params: Any, x: jax.Array, *, train: bool = False, rngs: dict[str, jax.Array] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return (logits [B, classes], features [B, F]) of images [B, H, W, C] in [-1, 1], float32."""
        if x.shape[1:] != self.spec.shape:
            raise ConfigError(f"the classifier takes images of the shape {self.spec.shape}, got {x.shape[1:]}")
        return self.module.apply({"params": params}, x, train=train, rngs=rngs or {})


@register("network", "small_classifier")
def small_classifier(image_size: Size, channels: Count, num_classes: Count, features: Count = 128) -> Classifier:
    """Build a small convolutional classifier: 58,000 parameters for 8 pixels, 193,000 for 32, 304,000 for 256.

    Args:
      image_size: H = W, or (H, W), at least 8; the image is halved until some 4 pixels of its smaller side are left.
      channels: of the image.
      num_classes: the length of the logits.
      features: the width of the feature vector, the layer before the logits.

    Raises:
      ConfigError: an image too small for its strides.

    >>> net = small_classifier(16, 1, 10)
    >>> logits, features = net.apply(net.init(jax.random.key(0)), jnp.zeros((2, 16, 16, 1)))
    >>> logits.shape, features.shape
    ((2, 10), (2, 128))
    """
    size = size_of(image_size)
    if min(size) < 8:
        raise ConfigError(f"small_classifier: images of at least 8 pixels, got {image_size}")
    halvings = max(2, math.ceil(math.log2(min(size) / 4)))
    widths = (16, 32, *[64] * (halvings - 1))
    return Classifier(SmallCNN(num_classes, features, widths), Spec.image(size, channels))
