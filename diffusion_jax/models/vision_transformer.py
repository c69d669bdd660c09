"""Vision transformers: DINOv2 and the image towers of CLIP are two settings of one module."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.models.feature_network import FeatureNetwork
from diffusion_jax.models.layers import dense_init, normal_init
from diffusion_jax.spec import Spec

Activation = Literal["gelu", "quick_gelu"]


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return x sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def cubic_matrix(old: int, new: int, scale: float | None = None) -> np.ndarray:
    """Return the cubic convolution of `old` samples at `new` places, without antialiasing: float32 [new, old].

    The kernel has a = -0.75 and the ends are repeated, as in PyTorch's interpolation.

    Args:
      scale: places a sample; new / old if left out.

    Source: Keys 1981.
    """
    places = (np.arange(new) + 0.5) / (scale or new / old) - 0.5
    nearest = np.floor(places).astype(int)
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        weights = _cubic(np.abs(places - nearest - offset))
        np.add.at(matrix, (np.arange(new), np.clip(nearest + offset, 0, old - 1)), weights)
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each branch times a learned scale per channel where asked for."""

    heads: int
    mlp: int
    activation: Activation
    layer_scale: bool
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        norm = lambda number: nn.LayerNorm(epsilon=self.epsilon, name=f"norm{number}")  # noqa: E731
        dense = lambda features, name: nn.Dense(features, kernel_init=dense_init(), name=name)  # noqa: E731

        def scaled(branch: jax.Array, number: int) -> jax.Array:
            if not self.layer_scale:
                return branch
            return branch * self.param(f"layer_scale{number}", initializers.ones_init(), (width,))

        x = x + scaled(Attention(self.heads, name="attention")(norm(1)(x)), 1)
        hidden = dense(self.mlp, "mlp_in")(norm(2)(x))
        hidden = quick_gelu(hidden) if self.activation == "quick_gelu" else jax.nn.gelu(hidden, approximate=False)
        return x + scaled(dense(width, "mlp_out")(hidden), 2)


class Attention(nn.Module):
    """Self-attention in which every token sees all."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        dense = lambda name: nn.Dense(width, kernel_init=dense_init(), name=name)  # noqa: E731
        parts = [dense(name)(x).reshape(batch, tokens, self.heads, -1) for name in ("query", "key", "value")]
        return dense("out")(jax.nn.dot_product_attention(*parts).reshape(x.shape))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, blocks, a norm of the class token, and maybe a projection.

    Attributes:
      patch: the side of a patch in pixels.
      width, depth, heads, mlp: of the blocks.
      grid: the side, in patches, of the image that the positions are stored for; they are interpolated for other sizes.
      activation: of the MLPs; "gelu" is the exact one.
      layer_scale: a learned factor per channel on every branch.
      patch_bias: whether the patches' linear map has one.
      norm_in: a norm before the blocks.
      projection: the width of a last linear map without bias; None for none.
      epsilon: of the norms.
      position_offset: added to the new side when positions are interpolated, before it is divided by the old one.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    grid: int
    activation: Activation = "gelu"
    layer_scale: bool = False
    patch_bias: bool = True
    norm_in: bool = False
    projection: int | None = None
    epsilon: float = 1e-6
    position_offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        patches = nn.Conv(
            self.width, (self.patch,) * 2, strides=(self.patch,) * 2, padding="VALID", use_bias=self.patch_bias,
            kernel_init=dense_init(), name="patches",
        )(x)  # fmt: skip
        batch, rows, columns, _ = patches.shape
        token = self.param("class_token", normal_init(0.02), (self.width,))
        token = jnp.broadcast_to(token, (batch, 1, self.width))
        x = jnp.concatenate([token, patches.reshape(batch, rows * columns, self.width)], 1) + self._positions(rows, columns)
        if self.norm_in:
            x = nn.LayerNorm(epsilon=self.epsilon, name="norm_in")(x)
        for number in range(self.depth):
            block = Block(self.heads, self.mlp, self.activation, self.layer_scale, self.epsilon, name=f"block{number}")
            x = block(x)
        features = nn.LayerNorm(epsilon=self.epsilon, name="norm_out")(x[:, 0])
        if self.projection is None:
            return {"pool": features}
        kernel = self.param("projection", dense_init(), (self.width, self.projection))
        return {"pool": features, "embedding": features @ kernel}

    def _positions(self, rows: int, columns: int) -> jax.Array:
        """[1 + rows * columns, width]: stored, or interpolated by cubic convolution."""
        stored = self.param("positions", normal_init(0.02), (1 + self.grid**2, self.width))
        if (rows, columns) == (self.grid, self.grid):
            return stored
        down, across = (cubic_matrix(self.grid, side, (side + self.position_offset) / self.grid) for side in (rows, columns))
        image = stored[1:].reshape(self.grid, self.grid, self.width)
        image = jnp.einsum("hH,wW,HWc->hwc", down, across, image)
        return jnp.concatenate([stored[:1], image.reshape(rows * columns, self.width)])


def vision_transformer(image_size: int, **fields: Any) -> FeatureNetwork:
    """Build a vision transformer of square images [B, image_size, image_size, 3]; the fields are `VisionTransformer`'s.

    It gives "pool" [B, width], the class token after the last norm, and with a projection "embedding" [B, projection].

    Raises:
      ConfigError: an image that patches do not fill, or a width that heads do not divide.

    >>> tiny = vision_transformer(32, patch=8, width=64, depth=2, heads=4, mlp=256, grid=4)
    >>> tiny.dims()
    {'pool': 64}
    """
    module = VisionTransformer(**fields)
    if image_size % module.patch:
        raise ConfigError(f"vision_transformer: patches of {module.patch} pixels do not fill an image of {image_size}")
    if module.width % module.heads:
        raise ConfigError(f"vision_transformer: {module.heads} heads do not divide the width {module.width}")
    check_choice("vision_transformer: activation", module.activation, ("gelu", "quick_gelu"))
    return FeatureNetwork(module, Spec.image(image_size, 3))


_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
DINOV2 = {"vit_s14": "small", "vit_b14": "base", "vit_l14": "large"}
CLIP = {  # size, patch, image size, projection
    "vit_b32": ("base", 32, 224, 512),
    "vit_b16": ("base", 16, 224, 512),
    "vit_l14": ("large", 14, 224, 768),
    "vit_l14_336": ("large", 14, 336, 768),
}


@functools.cache
def dinov2(variant: str = "vit_l14") -> FeatureNetwork:
    """Return the backbone of DINOv2 for images [B, 224, 224, 3]: "pool" is the class token, 1024 wide in "vit_l14".

    Its positions are stored for 518 pixels and interpolated as the release does.

    Args:
      variant: "vit_s14", "vit_b14" or "vit_l14".

    Sources: Oquab et al. 2023 (arXiv 2304.07193); Stein et al. 2023 (arXiv 2306.04675) for the distance.
    """
    check_choice("dinov2: variant", variant, DINOV2)
    width, depth, heads = _SIZES[DINOV2[variant]]
    return vision_transformer(
        224, patch=14, width=width, depth=depth, heads=heads, mlp=4 * width, grid=37, layer_scale=True, position_offset=0.1
    )


@functools.cache
def clip_vision(variant: str = "vit_b32") -> FeatureNetwork:
    """Return the image tower of OpenAI's CLIP: "embedding" is in the space shared with text, not normalised.

    Args:
      variant: "vit_b32", "vit_b16", "vit_l14" or "vit_l14_336".

    Source: Radford et al. 2021 (arXiv 2103.00020).
    """
    check_choice("clip_vision: variant", variant, CLIP)
    size, patch, image_size, projection = CLIP[variant]
    width, depth, heads = _SIZES[size]
    return vision_transformer(
        image_size, patch=patch, width=width, depth=depth, heads=heads, mlp=4 * width, grid=image_size // patch,
        activation="quick_gelu", patch_bias=False, norm_in=True, projection=projection, epsilon=1e-5,
    )  # fmt: skip
