"""Super-resolution: images from noise and a low-resolution image, with noise-conditioning augmentation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError, nearest
from diffusion_jax.process import Process
from diffusion_jax.registry import register
from diffusion_jax.rng import named
from diffusion_jax.systems.base import Batch, Request
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.images import RESIZE_METHODS, blur, downsample, to_float
from diffusion_jax.systems.parts import build_process, check_probability
from diffusion_jax.systems.sampling import Sampling


@register("system", "super_resolution")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolution(Diffusion):
    """A stage of a cascade: the network sees an upsampled low-resolution image beside x_t.

    In training the low-resolution image is made from the batch and then corrupted by a process of its own, at a level
    drawn uniformly; the network is told the level through an embedding of its own. So one set of parameters accepts
    exact images (level 0), images of an imperfect earlier stage (a small level), and none at all (level 1).

    Args:
      low_res_size: pixels of the low-resolution side.
      low_res_resize: "area" (integer factors), "bilinear" or "bicubic": how it is made from the batch, anti-aliased.
      aug_schedule: the schedule of the augmentation's process; None is plain conditioning, without a level.
      aug_levels: (low, high): the range in [0, 1] of the levels drawn in training.
      blur_prob: the probability of a Gaussian 3x3 blur of the low-resolution image, in training only.
      blur_sigma: (low, high) of the blur's standard deviation, in low-resolution pixels.
      (more): the fields of `Diffusion`.

    Sources: Ho et al. 2021, section 4 (arXiv 2106.15282); Saharia et al. 2022, section 2.2 (arXiv 2205.11487);
    blur: Saharia et al. 2021 (arXiv 2104.07636).
    """

    low_res_size: int
    low_res_resize: str = "area"
    aug_schedule: Any = "cosine_continuous"
    aug_levels: tuple[float, float] = (0.0, 1.0)
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.4, 0.6)

    name = "super_resolution"
    needs_data = True

    def __post_init__(self) -> None:
        self._check_sizes()
        check_probability(self.name, "blur_prob", self.blur_prob)
        low, high = self.aug_levels
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"system {self.name!r}: aug_levels must be (low, high), 0 <= low <= high <= 1, got {self.aug_levels}"
            )
        if self.aug_process is not None and not jnp.isfinite(self.aug_process.noise_level(0.0)):
            raise ConfigError(f"system {self.name!r}: the augmentation's noise level must be finite at level 0")
        super().__post_init__()

    def _check_sizes(self) -> None:
        if self.low_res_resize not in RESIZE_METHODS:
            hint = nearest(str(self.low_res_resize), RESIZE_METHODS)
            raise ConfigError(
                f"system {self.name!r}: unknown low_res_resize {self.low_res_resize!r}{hint} "
                f"(known: {', '.join(RESIZE_METHODS)})"
            )
        if not 0 < self.low_res_size <= self.image_size:
            raise ConfigError(
                f"system {self.name!r}: low_res_size {self.low_res_size} must lie in 1 to image_size {self.image_size}"
            )
        if self.low_res_resize == "area" and self.image_size % self.low_res_size:
            raise ConfigError(
                f"system {self.name!r}: low_res_resize 'area' needs low_res_size {self.low_res_size} to divide "
                f"image_size {self.image_size}; use 'bicubic'"
            )

    @property
    def low_res_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of the low-resolution image."""
        return self.low_res_size, self.low_res_size, self.channels

    @property
    def aug_process(self) -> Process | None:
        """The process that corrupts the low-resolution image; nothing is ever predicted of it."""
        if self.aug_schedule is None:
            return None
        return build_process({"schedule": self.aug_schedule, "prediction": "x0", "noise_input": "rescaled_timestep"})

    def _extra_fields(self) -> dict[str, Any]:
        return {
            "low_res_channels": self.channels,
            "low_res_size": self.low_res_size,
            "aug_level": self.aug_schedule is not None,
        }

    def _extra_keys(self) -> set[str]:
        return {"low_res", "aug_level"} if self.aug_schedule is not None else {"low_res"}

    # Conditioning -----------------------------------------------------------------------------------------------------

    def low_res(self, images: jax.Array) -> jax.Array:
        """Clean low-resolution images [B, h, w, C] of float images [B, H, W, C]."""
        return downsample(images, self.low_res_shape[:2], self.low_res_resize)

    def conditioning(self, low_res: jax.Array, level: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        """What the network is told: the low-resolution image at an augmentation level, and that level.

        Args:
          low_res: clean, float [B, h, w, C] in [-1, 1].
          level: [B] in [0, 1]: 0 is the image itself, 1 is noise.
          noise: standard normal, like low_res.
        """
        if self.aug_process is None:
            return {"low_res": low_res}
        return self.told(self.aug_process.diffuse(low_res, level, noise), level)

    def told(self, corrupted: jax.Array, level: jax.Array) -> dict[str, jax.Array]:
        """As `conditioning`, of an image that is already at the level."""
        return {"low_res": corrupted, "aug_level": self.aug_process.noise_level(level)}

    def _extra_cond(self, x0: jax.Array, key: jax.Array, train: bool) -> dict[str, jax.Array]:
        batch = x0.shape[0]
        low_res = self.low_res(x0)
        if train and self.blur_prob:
            sigma = jax.random.uniform(named(key, "blur sigma"), (batch,), minval=self.blur_sigma[0], maxval=self.blur_sigma[1])
            blurred = jax.random.bernoulli(named(key, "blur"), self.blur_prob, (batch,))
            low_res = blur(low_res, jnp.where(blurred, sigma, 0.0))
        level = jax.random.uniform(named(key, "level"), (batch,), minval=self.aug_levels[0], maxval=self.aug_levels[1])
        return self.conditioning(low_res, level, jax.random.normal(named(key, "noise"), low_res.shape))

    def _sampling_cond(self, request: Request, key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict:
        level = jnp.full(indices.shape, sampling.aug_level, jnp.float32)
        if "corrupted" in request:
            return self.told(request["corrupted"], level)
        low_res = to_float(request["low_res"])
        keys = jax.vmap(lambda index: named(key, "noise", index))(indices)
        noise = jax.vmap(lambda k: jax.random.normal(k, self.low_res_shape))(keys)
        return self.conditioning(low_res, level, noise)

    # Requests ---------------------------------------------------------------------------------------------------------

    def request(self, batch: Batch) -> dict[str, Any]:
        """The batch's low-resolution images, and its labels where there are classes."""
        return {"low_res": self.low_res(to_float(batch["image"])), **super().request(batch)}

    def check_sampling(self, sampling: Sampling) -> None:
        """As every system, and an augmentation level needs a model trained with augmentation."""
        super().check_sampling(sampling)
        if self.aug_schedule is None and (sampling.aug_level or sampling.truncated):
            raise ConfigError(
                "this super-resolution model was trained without noise-conditioning augmentation: "
                "set aug_level to 0 and truncated to False"
            )

    def check_request(self, request: Request) -> None:
        """As every system, and the low-resolution images must have the trained size."""
        super().check_request(request)
        low_res = request.get("corrupted", request.get("low_res"))
        if low_res is None:
            raise ConfigError(f"super-resolution needs 'low_res' images in its request (has: {sorted(request)})")
        if tuple(low_res.shape[1:]) != self.low_res_shape:
            raise ConfigError(
                f"low-resolution images have the shape {tuple(low_res.shape[1:])}, "
                f"the model was trained on {self.low_res_shape}"
            )
