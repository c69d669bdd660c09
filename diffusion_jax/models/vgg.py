"""VGG-16 up to its second fully connected layer: the features of the original precision and recall."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from diffusion_jax.models.feature_network import FeatureNetwork
from diffusion_jax.models.layers import dense_init

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
    """VGG-16 without its last layer.

    It takes images [B, 224, 224, 3], normalised by the mean and deviation of ImageNet, and gives "fc2" [B, 4096], the
    second fully connected layer, and "fc2_relu", the same after its ReLU, which precision and recall are measured on.

    Sources: Simonyan & Zisserman 2014 (arXiv 1409.1556); Kynkaanniemi et al. 2019 (arXiv 1904.06991).

    >>> vgg16().num_params()
    134260544
    """
    return FeatureNetwork(VGG(4096), (224, 224, 3))
