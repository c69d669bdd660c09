"""Generation and super-resolution conditioned on text, given as arrays of embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser
from diffusion_jax.registry import register
from diffusion_jax.rng import named
from diffusion_jax.systems.base import Batch, Request
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.generation import Generation
from diffusion_jax.systems.images import downsample
from diffusion_jax.systems.sampling import Sampling, guided
from diffusion_jax.systems.super_resolution import SuperResolution


def drop_text(text: dict[str, jax.Array], probability: float, key: jax.Array) -> dict[str, jax.Array]:
    """Each text replaced, with a probability, by the null text: no tokens, all zeros (Imagen, section 2.2)."""
    kept = ~jax.random.bernoulli(key, probability, text["mask"].shape[:1])
    return jax.tree.map(lambda x: jnp.where(kept.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x)), text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConditioned(Diffusion):
    """What text adds to a system: batches and requests also have "text" [B, L, D], floating, and "text_mask" [B, L].

    Embeddings are made beforehand by any encoder. In training each text is dropped, with the probability `cond_drop`, to
    zeros without tokens, which is what guidance calls null; a request may name another null by "negative_text" and
    "negative_text_mask".

    Args:
      text_dim: D, the features of a token.
      text_length: L of the network's example inputs; batches and requests may have another.
      pooled_dim: above 0 a given pooled vector, "text_pooled" [B, pooled_dim], belongs to every text, for networks that
        take one.
      (more): the fields of `Diffusion`; num_classes stays 0.

    Source: Saharia et al. 2022, sections 2.1 and 2.2 (arXiv 2205.11487).
    """

    text_dim: int
    text_length: int = 128
    pooled_dim: int = 0

    needs_data = True

    def __post_init__(self) -> None:
        if self.text_dim < 1 or self.text_length < 1 or self.pooled_dim < 0:
            raise ConfigError(f"system {self.name!r}: text_dim and text_length must be at least 1, pooled_dim not negative")
        if self.num_classes:
            raise ConfigError(f"system {self.name!r} is conditioned on text alone: leave num_classes out")
        super().__post_init__()

    def _extra_fields(self) -> dict[str, Any]:
        fields = {"context_dim": self.text_dim, "context_length": self.text_length}
        return {**super()._extra_fields(), **fields, **({"pooled_dim": self.pooled_dim} if self.pooled_dim else {})}

    def _extra_keys(self) -> set[str]:
        return super()._extra_keys() | {"text"}

    @property
    def _parts(self) -> dict[str, str]:
        """The network's name of each array of a text, and its ending in batches and requests."""
        return {"tokens": "", "mask": "_mask"} | ({"pooled": "_pooled"} if self.pooled_dim else {})

    def _text(self, given: Any, name: str = "text") -> dict[str, jax.Array]:
        arrays = {part: jnp.asarray(given[name + ending]) for part, ending in self._parts.items()}
        return {part: x.astype(bool if part == "mask" else jnp.float32) for part, x in arrays.items()}

    def _training_cond(self, x0: jax.Array, batch: Batch, key: jax.Array, train: bool) -> dict[str, Any]:
        cond, text = super()._training_cond(x0, batch, key, train), self._text(batch)
        if train and self.cond_drop:
            text = drop_text(text, self.cond_drop, named(key, "text dropout"))
        return {**cond, "text": text}

    def denoiser(self, params: Any, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling) -> Denoiser:
        """The guided denoiser of a request."""
        text = self._text(request)
        negative = self._text(request, "negative_text") if "negative_text" in request else jax.tree.map(jnp.zeros_like, text)
        cond = self._sampling_cond(request, named(key, "conditioning"), indices, sampling)
        process = sampling.rebind(self.process)
        bind = lambda text: process.bind(self.network.apply, params, {**cond, "text": text})  # noqa: E731
        return guided(bind, text, negative, sampling)

    def request(self, batch: Batch) -> dict[str, Any]:
        """The texts of the batch, and what else the system needs."""
        return {**super().request(batch), **{f"text{ending}": batch[f"text{ending}"] for ending in self._parts.values()}}

    def check_sampling(self, sampling: Sampling) -> None:
        """As every system, where text is what guidance acts on."""
        super().check_sampling(dataclasses.replace(sampling, guidance=1.0))
        if sampling.guidance != 1 and not self.cond_drop:
            raise ConfigError(
                f"guidance {sampling.guidance:g} needs a model trained without text at times: set guidance to 1, or train "
                "with cond_drop > 0"
            )

    def check_labels(self, request: Request) -> None:
        """Texts must be there, of the model's width."""
        for name in ["text"] + ["negative_text"] * ("negative_text" in request):
            for part, ending in self._parts.items():
                field = name + ending
                if field not in request:
                    raise ConfigError(f"the model is conditioned on text: a request needs {field!r} (has: {sorted(request)})")
                shape, tokens = jnp.shape(request[field]), jnp.shape(request[name])
                wanted = {"tokens": (*tokens[:2], self.text_dim), "mask": tokens[:2], "pooled": (*tokens[:1], self.pooled_dim)}
                if len(tokens) != 3 or shape != wanted[part]:
                    more = f", pooled vectors [N, {self.pooled_dim}]" if self.pooled_dim else ""
                    raise ConfigError(
                        f"{field!r} has the shape {shape}, but texts are [N, L, {self.text_dim}], masks [N, L]{more}"
                    )

    def check(self, pipeline: Any) -> None:
        """As every system, and the data must have embeddings of the model's width."""
        super().check(pipeline)
        example = next(pipeline.one_pass(1))
        if "text" not in example:
            raise ConfigError(
                "the data have no text embeddings: give the folder source `embeddings`, or wrap a source that has captions "
                "in 'one_hot_words'"
            )
        self.check_labels(self.request(example))


@register("system", "text_generation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextGeneration(TextConditioned, Generation):
    """Images from text; see `TextConditioned`."""

    name = "text_generation"


@register("system", "text_super_resolution")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSuperResolution(TextConditioned, SuperResolution):
    """Super-resolution with text; see `TextConditioned` and `SuperResolution`.

    Args:
      crop_size: train on random crops of this many pixels, and the low-resolution crops that belong to them; a fully
        convolutional network is then sampled at the whole `image_size`. None trains on whole images.

    Source: crops: Saharia et al. 2022, appendix F (arXiv 2205.11487).
    """

    crop_size: int | None = None

    name = "text_super_resolution"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_size is None:
            return
        factor = self.image_size // self.low_res_size
        if self.image_size % self.low_res_size or self.crop_size % factor or not 0 < self.crop_size <= self.image_size:
            raise ConfigError(
                f"system {self.name!r}: crop_size {self.crop_size} must be a multiple of image_size / low_res_size = "
                f"{self.image_size} / {self.low_res_size}, a whole number, and at most image_size"
            )

    def crop(self, images: jax.Array, key: jax.Array, train: bool) -> jax.Array:
        """Crops [B, crop_size, crop_size, C] whose edges lie on pixels of the low resolution; central unless training."""
        if self.crop_size is None:
            return images
        factor = self.image_size // self.low_res_size
        places = (self.image_size - self.crop_size) // factor + 1
        corner = jnp.full((images.shape[0], 2), (places - 1) // 2)
        if train:
            corner = jax.random.randint(key, corner.shape, 0, places)
        size = (self.crop_size, self.crop_size, images.shape[-1])
        return jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (*at, 0), size))(jnp.asarray(images), corner * factor)

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array, *, train: bool = True) -> tuple:
        """The denoising loss of a batch, or of crops of it."""
        batch = {**batch, "image": self.crop(batch["image"], named(key, "crop"), train)}
        return super().loss(params, state, batch, key, train=train)

    def low_res(self, images: jax.Array) -> jax.Array:
        """Clean low-resolution images of float images [B, H, W, C], whole or crops."""
        factor = self.image_size / self.low_res_size
        return downsample(images, tuple(round(side / factor) for side in images.shape[1:3]), self.low_res_resize)
