"""A small image classifier, whose features also serve as the space of a Frechet distance on the bundled data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models.layers import Dropout, GroupNorm, dense_init
from diffusion_jax.registry import register


class SmallCNN(nn.Module):
    """Strided convolutions with group normalisation, a feature layer and logits."""

    num_classes: int
    features: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        init = dense_init()
        for level, width in enumerate(self.widths):
            strides = (1, 1) if level == 0 else (2, 2)
            x = nn.Conv(width, (3, 3), strides=strides, use_bias=False, kernel_init=init, name=f"conv{level}")(x)
            x = nn.relu(GroupNorm(8, 1e-5, name=f"norm{level}")(x))
        x = Dropout(0.2, name="dropout_in")(x.reshape(x.shape[0], -1), train)
        features = nn.relu(nn.Dense(self.features, kernel_init=init, name="features")(x))
        hidden = Dropout(0.4, name="dropout_out")(features, train)
        return nn.Dense(self.num_classes, kernel_init=init, name="logits")(hidden), features


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier made functional; see `small_classifier`."""

    module: SmallCNN
    image_shape: tuple[int, int, int]

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh parameters, a plain nested dict of float32 arrays."""
        return self.module.init(key, jnp.zeros((1, *self.image_shape)), train=False)["params"]

    def apply(
        self, params: Any, x: jax.Array, *, train: bool = False, rngs: dict[str, jax.Array] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(logits [B, classes], features [B, F]) of images [B, H, W, C] in [-1, 1], float32."""
        if x.shape[1:] != self.image_shape:
            raise ConfigError(f"the classifier takes images of the shape {self.image_shape}, got {x.shape[1:]}")
        return self.module.apply({"params": params}, x, train=train, rngs=rngs or {})


@register("network", "small_classifier")
def small_classifier(image_size: int, channels: int, num_classes: int, features: int = 128) -> Classifier:
    """A small convolutional classifier: 58,000 parameters for 8 pixels, 193,000 for 32, 304,000 for 256.

    Args:
      image_size: H = W, at least 8; the image is halved until some 4 pixels are left.
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
    if image_size < 8:
        raise ConfigError(f"small_classifier: images of at least 8 pixels, got {image_size}")
    halvings = max(2, math.ceil(math.log2(image_size / 4)))
    widths = (16, 32, *[64] * (halvings - 1))
    return Classifier(SmallCNN(num_classes, features, widths), (image_size, image_size, channels))
