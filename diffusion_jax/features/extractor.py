"""Features of images: a network, how images are made ready for it, and the checksum of its weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.features.classifier import Judge
from diffusion_jax.features.resizing import Preprocessing, preprocessing
from diffusion_jax.interop import feature_networks
from diffusion_jax.models.feature_network import FeatureNetwork, vgg16
from diffusion_jax.models.inception import inception_v3
from diffusion_jax.models.vision_transformer import clip_vision, dinov2
from diffusion_jax.registry import register

_ALLOWED = {  # preprocessings of each network, its default first
    "inception": ("tf1", "pytorch-fid", "clean-fid"),
    "vgg16": ("torch-fidelity", "torchvision"),
    "dinov2": ("dinov2", "dinov2-float"),
    "clip": ("clip",),
}
_PUBLISHED = {"inception": "6726825d", "vgg16": "397923af"}  # how the checksums of the files on everyone's disk begin
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A network with fixed weights as a function of uint8 images.

    Attributes:
      name: of the network and its variant, such as "inception" or "clip/vit_b32".
      preprocessing: how images are resized and scaled.
      checksum: SHA-256 of the weight file, or of the parameters where there is none.
      dims: the width of each output by name.
      function: (parameters, what the preprocessing gives) -> outputs.
      params: the network's.
      channels: of the images that it takes; grey ones are repeated where it is 3.
      size: H = W of the images, where no other is taken.
      chunk: how many images a device takes at a time. It is fixed, because the last digits of a product depend on its
        shape: features are the same on any number of devices and for any number of images.
    """

    name: str
    preprocessing: Preprocessing
    checksum: str
    dims: dict[str, int]
    function: Callable[[Any, jax.Array], dict[str, jax.Array]] = dataclasses.field(repr=False)
    params: Any = dataclasses.field(repr=False)
    channels: int = 3
    size: int | None = None
    chunk: int = 32

    def identity(self) -> dict[str, str]:
        """What a file of statistics must agree with, as JSON data."""
        return {"network": self.name, "preprocessing": self.preprocessing.name, "checksum": self.checksum}

    def __call__(self, images: np.ndarray) -> dict[str, jax.Array]:
        """Outputs of images by name, float32 [N, D] each.

        They are split over this process's devices, `chunk` each at a time; the last are filled up. One program is
        compiled for each size of the images, whatever their number.

        Args:
          images: uint8 [N, H, W, C], C = 1 or 3.

        Raises:
          DataError: images of another dtype or shape, or with an alpha channel.
        """
        images = check_images(images)
        if images.shape[-1] == 1 and self.channels == 3:
            images = np.repeat(images, 3, axis=-1)
        if images.shape[-1] != self.channels:
            raise DataError(f"{self.name} takes images of {self.channels} channel, got the shape {images.shape}")
        if self.size is not None and images.shape[1:3] != (self.size, self.size):
            raise DataError(f"{self.name} takes images of {self.size}x{self.size} pixels, got the shape {images.shape}")
        ready, step = self.preprocessing.on_host(images), self.chunk * self._mesh.size
        if len(ready) % step:
            ready = np.concatenate([ready, np.repeat(ready[-1:], -len(ready) % step, axis=0)])
        sharding = NamedSharding(self._mesh, P("data"))
        parts = [ready[start : start + step] for start in range(0, len(ready), step)]
        found = [self._compiled(self._params, jax.device_put(part, sharding)) for part in parts]
        if len(images) == step:
            return found[0]
        return {name: jnp.concatenate([part[name] for part in found])[: len(images)] for name in self.dims}

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.local_devices()), ("data",), axis_types=(AxisType.Auto,))

    @functools.cached_property
    def _params(self) -> Any:
        """A copy on every device, made once."""
        return jax.device_put(self.params, NamedSharding(self._mesh, P()))

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(lambda params, x: self.function(params, self.preprocessing.device(x)))


def check_images(images: Any) -> np.ndarray:
    """The images, if they are uint8 [N, H, W, 1 or 3].

    Raises:
      DataError: they are not; the message says what to do.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        bad = images.dtype.kind == "f" and not np.isfinite(images).all()
        hint = "some of it is NaN or infinite" if bad else "round them to 0..255 and convert"
        raise DataError(f"images must be uint8 in 0..255, got {images.dtype}: {hint}")
    if images.ndim != 4 or not images.size:
        raise DataError(f"images must be [N, H, W, C] with none of them 0, got the shape {images.shape}")
    if images.shape[-1] in (2, 4):
        raise DataError(
            f"images of the shape {images.shape} have an alpha channel: what lies behind it changes every metric; "
            "composite them on a ground of your choice first"
        )
    if images.shape[-1] not in (1, 3):
        raise DataError(f"images must have 1 or 3 channels at the end, got the shape {images.shape}")
    return images


def _build(
    name: str,
    variant: str | None,
    network: FeatureNetwork,
    table: Any,
    weights: str,
    how: str | None,
    sha256: str | None,
    chunk: int | None,
) -> Extractor:
    allowed = _ALLOWED[name]
    how = allowed[0] if how is None else how
    chosen = preprocessing(how, network.spec.size[0])
    if how not in allowed:
        raise ConfigError(f"features {name!r} cannot have the preprocessing {how!r} (it has: {', '.join(allowed)})")
    params, checksum = feature_networks.load(weights, table, network.shapes(), sha256)
    if not checksum.startswith(_PUBLISHED.get(name, "")):
        _LOG.warning(
            "%s is not the published file of %s (%s...): unless it is a copy in another format, its distances compare with "
            "one another only.", weights, name, _PUBLISHED[name],
        )  # fmt: skip
    full = name if variant is None else f"{name}/{variant}"
    chunk = (4 if jax.default_backend() == "cpu" else 32) if chunk is None else chunk
    return Extractor(full, chosen, checksum, network.dims(), network.apply, params, chunk=chunk)


@register("features", "inception")
def inception(weights: str, preprocessing: str | None = None, sha256: str | None = None, chunk: int | None = None) -> Extractor:
    """Inception-v3 of 2015-12-05: "pool" [N, 2048], "logits_unbiased" [N, 1008], "spatial" [N, 2023].

    Args:
      weights: a file in pytorch-fid's names, such as `pt_inception-2015-12-05-6726825d.pth`, or the same as safetensors.
      preprocessing: "tf1" (the default), "pytorch-fid" or "clean-fid"; see `resizing`.
      sha256: the file's checksum or its first digits, compared if given.
      chunk: images that a device takes at a time; 4 on a CPU and 32 elsewhere.

    Raises:
      DataError: a missing or damaged file, another checksum, or weights of another network.
      ConfigError: an unknown preprocessing, or a format that cannot be read here.
    """
    return _build("inception", None, inception_v3(), feature_networks.INCEPTION, weights, preprocessing, sha256, chunk)


@register("features", "vgg16")
def vgg(weights: str, preprocessing: str | None = None, sha256: str | None = None, chunk: int | None = None) -> Extractor:
    """VGG-16: "fc2" and "fc2_relu" [N, 4096].

    Args:
      weights: a file in torchvision's names, such as `vgg16-397923af.pth`, or the same as safetensors.
      preprocessing: "torch-fidelity" (the default, which sees the whole image) or "torchvision"; see `resizing`.
      sha256: the file's checksum or its first digits, compared if given.
      chunk: images that a device takes at a time; 4 on a CPU and 32 elsewhere.

    Raises:
      DataError, ConfigError: as `inception`.
    """
    return _build("vgg16", None, vgg16(), feature_networks.VGG16, weights, preprocessing, sha256, chunk)


@register("features", "dinov2")
def dino(
    weights: str,
    variant: str = "vit_l14",
    preprocessing: str | None = None,
    sha256: str | None = None,
    chunk: int | None = None,
) -> Extractor:
    """DINOv2: "pool" [N, 1024] for the variant "vit_l14".

    Args:
      weights: a file in the names of the release, such as `dinov2_vitl14_pretrain.pth`, or of transformers.
      variant: "vit_s14", "vit_b14" or "vit_l14".
      preprocessing: "dinov2" (the default) or "dinov2-float"; see `resizing`.
      sha256: the file's checksum or its first digits, compared if given.
      chunk: images that a device takes at a time; 4 on a CPU and 32 elsewhere.

    Raises:
      DataError, ConfigError: as `inception`.
    """
    return _build("dinov2", variant, dinov2(variant), feature_networks.DINOV2, weights, preprocessing, sha256, chunk)


@register("features", "clip")
def clip(
    weights: str,
    variant: str = "vit_b32",
    preprocessing: str | None = None,
    sha256: str | None = None,
    chunk: int | None = None,
) -> Extractor:
    """The image tower of CLIP: "embedding" [N, 512 or 768], not normalised, and "pool", which it is projected from.

    Args:
      weights: a file in the names of transformers or OpenCLIP; what it holds of the text tower is left out.
      variant: "vit_b32", "vit_b16", "vit_l14" or "vit_l14_336".
      preprocessing: "clip", the only one.
      sha256: the file's checksum or its first digits, compared if given.
      chunk: images that a device takes at a time; 4 on a CPU and 32 elsewhere.

    Raises:
      DataError, ConfigError: as `inception`.
    """
    return _build("clip", variant, clip_vision(variant), feature_networks.CLIP_VISION, weights, preprocessing, sha256, chunk)


@register("features", "small")
def small(judge: Judge) -> Extractor:
    """A classifier that was trained on the data itself: "pool" [N, F] and "logits_unbiased" [N, classes].

    It needs no weight file; distances in its features can be compared with one another, not with published numbers.
    """
    size, _, channels = judge.network.spec.shape

    def function(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("highest"):
            logits, features = judge.network.apply(params, x)
        return {"pool": features, "logits_unbiased": logits - params["logits"]["bias"]}

    as_trained = Preprocessing("as-trained", size, None, lambda x: x.astype(jnp.float32) / 127.5 - 1)
    shapes = jax.eval_shape(function, judge.params, jax.ShapeDtypeStruct((1, *judge.network.spec.shape), jnp.float32))
    dims = {name: rows.shape[-1] for name, rows in shapes.items()}
    return Extractor("small", as_trained, params_checksum(judge.params), dims, function, judge.params, channels, size, chunk=64)


def params_checksum(params: Any) -> str:
    """SHA-256 of parameters: of each leaf's path, dtype, shape and bytes, in the order of the paths."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
