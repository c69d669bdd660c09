"""Inception-v3 as the graph of 2015-12-05 has it: the network of FID, sFID, KID and the Inception Score."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from diffusion_jax.models.feature_network import FeatureNetwork
from diffusion_jax.models.layers import dense_init
from diffusion_jax.spec import Spec

_EPSILON = 1e-3  # of the batch normalisation
_SPATIAL_CHANNELS = 7  # 17 * 17 * 7 = 2023, about as many as pool_3 has


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation by stored moments, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.features, self.kernel, strides=(self.stride,) * 2, padding="SAME" if self.same else "VALID",
            use_bias=False, kernel_init=dense_init(), name="conv",
        )(x)  # fmt: skip
        return nn.relu(StoredNorm(name="bn")(x))


class StoredNorm(nn.Module):
    """Batch normalisation as it is after training: an affine map, all four vectors of which are parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros, width = initializers.ones_init(), initializers.zeros_init(), (x.shape[-1],)
        scale, bias = self.param("scale", ones, width), self.param("bias", zeros, width)
        mean, var = self.param("mean", zeros, width), self.param("var", ones, width)
        return (x - mean) * (scale * jax.lax.rsqrt(var + _EPSILON)) + bias


def _average(x: jax.Array) -> jax.Array:
    """3x3 means over the pixels inside of the image: the padding does not count, as in TensorFlow."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _reduce(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _chain(x: jax.Array, prefix: str, *layers: tuple[str, int, tuple[int, int]], **last: object) -> jax.Array:
    """Convolutions in a row, named prefix_1, prefix_2, ...; `last` goes to the last one."""
    for number, (suffix, features, kernel) in enumerate(layers, 1):
        extra = last if number == len(layers) else {}
        x = ConvNorm(features, kernel, name=f"{prefix}{suffix}", **extra)(x)
    return x


class MixedA(nn.Module):
    """35x35: 1x1, 5x5, two 3x3, pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = [
            ConvNorm(64, name="branch1x1")(x),
            _chain(x, "branch5x5", ("_1", 48, (1, 1)), ("_2", 64, (5, 5))),
            _chain(x, "branch3x3dbl", ("_1", 64, (1, 1)), ("_2", 96, (3, 3)), ("_3", 96, (3, 3))),
            ConvNorm(self.pool_features, name="branch_pool")(_average(x)),
        ]
        return jnp.concatenate(parts, -1)


class MixedB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        down = {"stride": 2, "same": False}
        parts = [
            ConvNorm(384, (3, 3), name="branch3x3", **down)(x),
            _chain(x, "branch3x3dbl", ("_1", 64, (1, 1)), ("_2", 96, (3, 3)), ("_3", 96, (3, 3)), **down),
            _reduce(x),
        ]
        return jnp.concatenate(parts, -1)


class MixedC(nn.Module):
    """17x17: 1x1, factored 7x7, two factored 7x7, pool. Returns the block's output and its 1x1 branch."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        w, row, column = self.width, (1, 7), (7, 1)
        first = ConvNorm(192, name="branch1x1")(x)
        parts = [
            first,
            _chain(x, "branch7x7", ("_1", w, (1, 1)), ("_2", w, row), ("_3", 192, column)),
            _chain(
                x, "branch7x7dbl",
                ("_1", w, (1, 1)), ("_2", w, column), ("_3", w, row), ("_4", w, column), ("_5", 192, row),
            ),
            ConvNorm(192, name="branch_pool")(_average(x)),
        ]  # fmt: skip
        return jnp.concatenate(parts, -1), first


class MixedD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        down = {"stride": 2, "same": False}
        layers = (("_1", 192, (1, 1)), ("_2", 192, (1, 7)), ("_3", 192, (7, 1)), ("_4", 192, (3, 3)))
        parts = [
            _chain(x, "branch3x3", ("_1", 192, (1, 1)), ("_2", 320, (3, 3)), **down),
            _chain(x, "branch7x7x3", *layers, **down),
            _reduce(x),
        ]
        return jnp.concatenate(parts, -1)


class MixedE(nn.Module):
    """8x8: branches that end in a row and a column side by side; the last block's pool takes the maximum."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def cross(x: jax.Array, prefix: str) -> Sequence[jax.Array]:
            return [ConvNorm(384, (1, 3), name=f"{prefix}a")(x), ConvNorm(384, (3, 1), name=f"{prefix}b")(x)]

        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pool else _average(x)
        parts = [
            ConvNorm(320, name="branch1x1")(x),
            *cross(ConvNorm(384, name="branch3x3_1")(x), "branch3x3_2"),
            *cross(_chain(x, "branch3x3dbl", ("_1", 448, (1, 1)), ("_2", 384, (3, 3))), "branch3x3dbl_3"),
            ConvNorm(192, name="branch_pool")(pooled),
        ]
        return jnp.concatenate(parts, -1)


class InceptionV3(nn.Module):
    """The whole network; the submodules are named as torchvision names them."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        x = ConvNorm(32, (3, 3), stride=2, same=False, name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), same=False, name="Conv2d_2a_3x3")(x)
        x = _reduce(ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = ConvNorm(80, name="Conv2d_3b_1x1")(x)
        x = _reduce(ConvNorm(192, (3, 3), same=False, name="Conv2d_4a_3x3")(x))
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = MixedA(pool_features, name=f"Mixed_5{letter}")(x)
        x = MixedB(name="Mixed_6a")(x)
        branches = {}
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x, branches[letter] = MixedC(width, name=f"Mixed_6{letter}")(x)
        x = MixedD(name="Mixed_7a")(x)
        x = MixedE(max_pool=False, name="Mixed_7b")(x)
        x = MixedE(max_pool=True, name="Mixed_7c")(x)
        pool = x.mean((1, 2))
        spatial = branches["d"][..., :_SPATIAL_CHANNELS]  # TensorFlow's mixed_6
        return {
            "pool": pool,
            "logits_unbiased": Head(self.num_classes, name="fc")(pool),
            "spatial": spatial.reshape(x.shape[0], -1),
        }


class Head(nn.Module):
    """The last linear map. Its bias is in every published file, and the Inception Score leaves it out."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", dense_init(), (x.shape[-1], self.features))
        self.param("bias", initializers.zeros_init(), (self.features,))
        return x @ kernel


@functools.cache
def inception_v3(num_classes: int = 1008) -> FeatureNetwork:
    """Return Inception-v3 as TensorFlow's file of 2015-12-05 defines it, the network of the published FID numbers.

    It takes images [B, 299, 299, 3] in [-1, 1] and gives "pool" [B, 2048] (pool_3: FID, KID, precision and recall),
    "logits_unbiased" [B, 1008] (the last layer without its bias: the Inception Score) and "spatial" [B, 2023] (sFID: the
    first seven channels of the 1x1 branch of mixed_6, rows first).

    It is not torchvision's network: its 3x3 means leave the padding out, its last block pools by the maximum, and its
    weights are others.

    Sources: Szegedy et al. 2015 (arXiv 1512.00567); Heusel et al. 2017 (arXiv 1706.08500) for FID; Nash et al. 2021
    (arXiv 2103.03841) for sFID.

    >>> inception_v3().num_params()
    23885392
    """
    return FeatureNetwork(InceptionV3(num_classes), Spec.image(299, 3))
