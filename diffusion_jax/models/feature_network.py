"""Networks with several named outputs and no randomness, made functional, through which metrics see images; VGG-16 is one."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.models.layers import dense_init
from diffusion_jax.spec import Spec

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network of float32 images [B, H, W, C], resized and normalised already.

    Matrix products and convolutions run in full float32 on every device: an accelerator's shorter default changes
    features in the third digit, and so the distances between them.

    Attributes:
      module: a Linen module called as `module(x)` that returns a dict of float32 arrays [B, D].
      spec: of x.
    """

    module: nn.Module
    spec: Spec

    def init(self, key: jax.Array) -> Params:
        """Return fresh parameters: a plain nested dict of float32 arrays."""
        zeros = jnp.zeros((1, *self.spec.shape))
        return jax.jit(lambda key: self.module.init(key, zeros)["params"])(key)

    def shapes(self) -> Params:
        """Return the parameters' shapes and dtypes, at no memory."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def num_params(self) -> int:
        """Return the number of parameters, at no memory."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes()))

    def dims(self) -> dict[str, int]:
        """Return the width D of each output, at no memory."""
        x = jax.ShapeDtypeStruct((1, *self.spec.shape), jnp.float32)
        return {name: found.shape[-1] for name, found in jax.eval_shape(self.apply, self.shapes(), x).items()}

    def apply(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """Return the outputs by name, float32 [B, D] each, for images float32 [B, H, W, C].

        Raises:
          ConfigError: images of another shape.
        """
        if x.shape[1:] != self.spec.shape:
            raise ConfigError(f"{type(self.module).__name__} takes images [B, {str(self.spec.shape)[1:-1]}], got {x.shape}")
        with jax.default_matmul_precision("highest"):
            return self.module.apply({"params": params}, x.astype(jnp.float32))


_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0 halves the image


class VGG(nn.Module):
    """Convolutions named by their place in torchvision's `features`, in which ReLU and pooling count too."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        place = 0
        for width in _WIDTHS:
            if width:
                x = nn.relu(nn.Conv(width, (3, 3), padding="SAME", kernel_init=dense_init(), name=f"conv{place}")(x))
                place += 2
            else:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
                place += 1
        x = nn.relu(nn.Dense(self.hidden, kernel_init=dense_init(), name="fc1")(x.reshape(x.shape[0], -1)))
        features = nn.Dense(self.hidden, kernel_init=dense_init(), name="fc2")(x)
        return {"fc2": features, "fc2_relu": nn.relu(features)}


@functools.cache
def vgg16() -> FeatureNetwork:
    """Return VGG-16 without its last layer.

    It takes images [B, 224, 224, 3], normalised by the mean and deviation of ImageNet, and gives "fc2" [B, 4096], the
    second fully connected layer, and "fc2_relu", the same after its ReLU, which precision and recall are measured on.

    Sources: Simonyan & Zisserman 2014 (arXiv 1409.1556); Kynkaanniemi et al. 2019 (arXiv 1904.06991).

    >>> vgg16().num_params()
    134260544
    """
    return FeatureNetwork(VGG(4096), Spec.image(224, 3))
