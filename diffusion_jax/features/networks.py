"""The feature networks by name: Inception, VGG, DINOv2, CLIP, and the small classifier of the data."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax import identity
from diffusion_jax.errors import ConfigError
from diffusion_jax.features.classifier import TrainedClassifier
from diffusion_jax.features.extractor import Extractor
from diffusion_jax.features.resizing import Preprocessing, preprocessing
from diffusion_jax.interop import feature_networks
from diffusion_jax.models.feature_network import FeatureNetwork, vgg16
from diffusion_jax.models.inception import inception_v3
from diffusion_jax.models.vision_transformer import clip_vision, dinov2
from diffusion_jax.registry import register
from diffusion_jax.values import Count

_ALLOWED = {  # preprocessings of each network, its default first
    "inception": ("tf1", "pytorch-fid", "clean-fid"),
    "vgg16": ("torch-fidelity", "torchvision"),
    "dinov2": ("dinov2", "dinov2-float"),
    "clip": ("clip",),
}
_PUBLISHED = {"inception": "6726825d", "vgg16": "397923af"}  # how the checksums of the files on everyone's disk begin
_LOG = logging.getLogger(__name__)


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
def inception(
    weights: str, preprocessing: str | None = None, sha256: str | None = None, chunk: Count | None = None
) -> Extractor:
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
def vgg(weights: str, preprocessing: str | None = None, sha256: str | None = None, chunk: Count | None = None) -> Extractor:
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
    chunk: Count | None = None,
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
    chunk: Count | None = None,
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
def small(classifier: TrainedClassifier) -> Extractor:
    """Return the features of a classifier that was trained on the data itself: "pool" [N, F], "logits_unbiased" [N, classes].

    It needs no weight file; distances in its features can be compared with one another, not with published numbers.
    """
    network, params = classifier.network, classifier.params
    *size, channels = network.spec.shape

    def function(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("highest"):
            logits, features = network.apply(params, x)
        return {"pool": features, "logits_unbiased": logits - params["logits"]["bias"]}

    as_trained = Preprocessing("as-trained", size[0], None, lambda x: x.astype(jnp.float32) / 127.5 - 1)
    shapes = jax.eval_shape(function, params, jax.ShapeDtypeStruct((1, *network.spec.shape), jnp.float32))
    dims = {name: rows.shape[-1] for name, rows in shapes.items()}
    checksum = identity.checksum(params)
    return Extractor("small", as_trained, checksum, dims, function, params, channels, tuple(size), chunk=64)
