"""Image to image: colorization, inpainting, uncropping and restoration by one conditional model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.degradations import TASKS
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Denoiser, losses
from diffusion_jax.registry import register
from diffusion_jax.rng import named
from diffusion_jax.systems.base import Batch, Request
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.images import to_float, to_uint8, with_luma
from diffusion_jax.systems.sampling import Sampling

_ASKED = ("degraded", "missing", "task")


@register("system", "palette")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Palette(Diffusion):
    """The network sees a degraded image beside x_t; missing pixels are standard normal noise in it, and known ones stay.

    Batches and requests have "degraded" uint8 [B, H, W, C] and "missing" uint8 [B, H, W, 1] (255: to be filled, 0: known),
    as the `data.degradation` of a pipeline makes them ("mixture", "colorize", "inpaint", "uncrop", "jpeg"). Where nothing
    is missing the whole image is made anew. Elsewhere the network is fed the known pixels in place of theirs in x_t, the
    loss is an average over the missing ones alone, and samples have the known ones to the last bit. No mask is fed.

    Args:
      keep_luma: give samples of the task "colorize" exactly the luma of what was asked (ITU-R 601, before rounding to
        bytes); the published system does not.
      distance: "l2", or "l1" for less diverse samples.
      (more): the fields of `Diffusion`; the variance must be fixed, as the bound knows no masks.

    Source: Saharia et al. 2022 (arXiv 2111.05826).
    """

    keep_luma: bool = False

    name = "palette"
    needs_data = True

    def __post_init__(self) -> None:
        if self.keep_luma and self.channels != 3:
            raise ConfigError(f"system {self.name!r}: keep_luma needs 3 channels, got {self.channels}")
        super().__post_init__()
        losses.check(self.process, self.weighting, self.distance, self.vlb_weight, masked=True)
        half = jnp.float32(0.6)
        if float(self.process.prediction.input_scale(half, half)) != 1:
            raise ConfigError(
                f"system {self.name!r}: known pixels are shown to the network in place of x_t's, but the prediction "
                f"{self.process.prediction.name!r} scales its input; use 'eps', 'v' or 'x0'"
            )

    def _extra_fields(self) -> dict[str, Any]:
        return {"image_channels": self.channels}

    def _extra_keys(self) -> set[str]:
        return {"image"}

    # Conditioning -----------------------------------------------------------------------------------------------------

    def _source(self, request: Request, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(what the network sees, bool [B, H, W, 1] of the pixels that are made) of a batch or a request."""
        missing = jnp.asarray(request["missing"]) > 127
        seen = jnp.where(missing, noise, to_float(request["degraded"]))
        return seen, missing | ~missing.any((1, 2, 3), keepdims=True)

    def _beside(self, made: jax.Array) -> Callable[..., jax.Array]:
        """The network's apply with known pixels in place of those of x_t, which needs no noise there."""

        def apply(params: Any, x: jax.Array, level: jax.Array, cond: Any, **kwargs: Any) -> jax.Array:
            return self.network.apply(params, jnp.where(made, x, cond["image"]), level, cond, **kwargs)

        return apply

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array, *, train: bool = True) -> tuple:
        """The denoising loss of a batch over the pixels that are made; as `Diffusion.loss`, of a batch with a degradation.

        Raises:
          ConfigError: a batch without one.
        """
        self._check_degraded(batch)
        x0 = to_float(batch["image"])
        cond = self._training_cond(x0, batch, key, train)
        cond["image"], made = self._source(batch, jax.random.normal(named(key, "fill"), x0.shape))
        return self._denoising(self._beside(made), params, state, x0, cond, key, train, where=made)

    # Sampling ---------------------------------------------------------------------------------------------------------

    def _sampling_cond(self, request: Request, key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict:
        keys = jax.vmap(lambda index: named(key, "fill", index))(indices)
        noise = jax.vmap(lambda k: jax.random.normal(k, self.image_shape))(keys)
        return {"image": self._source(request, noise)[0]}

    def denoiser(self, params: Any, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling) -> Denoiser:
        """The guided denoiser of a request; of known pixels it says what they are."""
        inner = super().denoiser(params, key, request, indices, sampling)
        known = to_float(request["degraded"])
        _, made = self._source(request, known)

        def function(x_t: jax.Array, t: jax.Array) -> Denoised:
            x_t = jnp.where(made, x_t, known)
            denoised = inner(x_t, t)
            return inner.process.with_x0(denoised, jnp.where(made, denoised.x0, known), x_t, t)

        return Denoiser(function, inner.process)

    def sample(
        self, params: Any, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling, **more: Any
    ) -> jax.Array:
        """As `Diffusion.sample`; known pixels of finished images are those of the request, to the last bit."""
        images = super().sample(params, key, request, indices, sampling, **more)
        if more.get("end", 0.0) > 0:
            return images
        known = to_float(request["degraded"])
        _, made = self._source(request, known)
        if self.keep_luma and "task" in request:
            grey = (jnp.asarray(request["task"]) == TASKS.index("colorize"))[:, None, None, None]
            images = jnp.where(grey, with_luma(images, known[..., :1]), images)
        return jnp.where(made, images, known)

    # Requests ---------------------------------------------------------------------------------------------------------

    def request(self, batch: Batch) -> dict[str, Any]:
        """The batch's degraded images, which of their pixels are missing and their tasks, and its labels if there are any."""
        self._check_degraded(batch)
        return {**{name: batch[name] for name in _ASKED if name in batch}, **super().request(batch)}

    def _check_degraded(self, batch: Request) -> None:
        lacking = [name for name in ("degraded", "missing") if name not in batch]
        if lacking:
            raise ConfigError(
                f"system {self.name!r} needs {' and '.join(map(repr, lacking))} (has: {sorted(batch)}): set data.degradation, "
                "such as 'mixture' or 'colorize'"
            )

    def check(self, pipeline: Any) -> None:
        """As every system, and the data must have a degradation."""
        super().check(pipeline)
        if pipeline.degradation is None:
            raise ConfigError(f"system {self.name!r} needs data.degradation, such as 'mixture', 'colorize' or 'inpaint'")

    def check_request(self, request: Request) -> None:
        """As every system; image and mask must have the trained size, and the values that they are documented to have."""
        super().check_request(request)
        self._check_degraded(request)
        image, mask = tuple(request["degraded"].shape[1:]), tuple(request["missing"].shape[1:])
        if image != self.image_shape:
            raise ConfigError(f"degraded images have the shape {image}, the model was trained on {self.image_shape}")
        if mask != (*image[:2], 1):
            raise ConfigError(f"masks have the shape {mask}, their images {image}: mask and image must have one size")
        _check_mask(request["missing"])


def _check_mask(missing: Any) -> None:
    """Raise a `ConfigError` unless a mask is uint8, of 0 and 255 alone. The values of traced masks pass unseen."""
    advice = "a mask is uint8, 255 where a pixel is to be filled and 0 where it is known"
    if missing.dtype != np.uint8:
        raise ConfigError(f"'missing' has the dtype {missing.dtype}: {advice}")
    if isinstance(missing, jax.core.Tracer):
        return
    values = np.asarray(missing)
    other = values[(values != 0) & (values != 255)]
    if other.size:
        raise ConfigError(f"'missing' has the value {other[0]}: {advice}")


def panorama(
    system: Palette, params: Any, key: jax.Array, images: jax.Array, sampling: Sampling, *, applications: int = 8,
    side: str = "right",
) -> jax.Array:  # fmt: skip
    """Images made wider by uncropping again and again: each time half of the image size is added beyond the last half.

    Args:
      params: of a system that was trained to uncrop.
      key: of the run; each application has its own.
      images: uint8 [N, H, W, C].
      applications: how many times.
      side: "right" or "left".

    Returns:
      uint8 [N, H, W + applications * (W // 2), C]; what was given, and what was made before, stays to the last bit.

    Source: Saharia et al. 2022, section 4.3 (arXiv 2111.05826).
    """
    if side not in ("left", "right"):
        raise ConfigError(f"panorama: side must be 'left' or 'right', got {side!r}")
    if applications < 1:
        raise ConfigError(f"panorama: applications must be at least 1, got {applications}")
    canvas = jnp.asarray(images) if side == "right" else jnp.asarray(images)[:, :, ::-1]
    width = canvas.shape[2]
    known = width - width // 2
    flip = (lambda x: x) if side == "right" else (lambda x: x[:, :, ::-1])
    missing = jnp.zeros((*canvas.shape[:3], 1), jnp.uint8).at[:, :, known:].set(255)
    task = jnp.full(len(canvas), TASKS.index("uncrop"))

    @jax.jit
    def extend(params: Any, key: jax.Array, canvas: jax.Array) -> jax.Array:
        degraded = jnp.pad(canvas[:, :, -known:], ((0, 0), (0, 0), (0, width - known), (0, 0)), constant_values=128)
        request = {"degraded": flip(degraded), "missing": flip(missing), "task": task}
        return flip(to_uint8(system.sample(params, key, request, jnp.arange(len(canvas)), sampling)))[:, :, known:]

    for number in range(applications):
        made = extend(params, named(key, "panorama", number), canvas[:, :, -known:])
        canvas = jnp.concatenate([canvas, made], axis=2)
    return flip(canvas)
