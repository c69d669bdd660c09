"""A degraded image, of which pixels may be missing: colorization, inpainting, uncropping and restoration by one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.data import Pipeline
from diffusion_jax.data.degradations import TASKS, with_mask
from diffusion_jax.data.files import fitted, masked_images
from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.process import Process
from diffusion_jax.process.process import gaussian
from diffusion_jax.registry import register
from diffusion_jax.rng import named
from diffusion_jax.spec import Spec
from diffusion_jax.systems.codecs.pixels import check_pixels, to_float, to_uint8
from diffusion_jax.systems.conditioners.base import (
    Columns,
    Conditioner,
    DataOf,
    Flag,
    Known,
    gather,
    per_example,
    spec_field,
)
from diffusion_jax.systems.sampling import Sampling

_AS_THEY_ARE = "jpeg"  # a person's compressed images are not compressed once more
_LUMA = (0.299, 0.587, 0.114)


@register("conditioner", "image")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAndMask(Conditioner):
    """A degraded image, concatenated with x_t; its missing pixels are standard normal noise, and known ones stay.

    Batches and requests have "degraded" uint8 [B, H, W, C] and "missing" uint8 [B, H, W, 1] (255: to be filled, 0: known),
    as the `data.degradation` of a pipeline makes them ("mixture", "colorize", "inpaint", "uncrop", "jpeg"). Where nothing
    is missing the whole image is made anew. Elsewhere the network is fed the known pixels in place of theirs in x_t, the
    loss is an average over the missing ones alone, and samples have the known ones to the last bit.

    Args:
      feed_mask: feed the network the mask too, as "mask" [B, H, W, 1], 1 where a pixel is to be filled; Palette does not.
      keep_luma: give samples of the task "colorize" exactly the luma of their grey images (ITU-R 601, before rounding to
        bytes); the published system does not.

    Source: Saharia et al. 2022 (arXiv 2111.05826).
    """

    feed_mask: bool = False
    keep_luma: bool = False
    spec: Spec = spec_field()

    name = "image"
    columns = ("degraded", "missing", "task")
    flags = (
        Flag("images", "Image to image: a folder of images; they repeat where --num goes past their end."),
        Flag("masks", "Image to image: masks by the images' names, white where pixels are to be filled."),
        Flag("task", "Image to image: colorize, inpaint, uncrop or jpeg; the run's own mixture if left out."),
    )
    needs_data = True
    keeps_known = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_luma and self.spec.channels != 3:
            raise ConfigError(f"conditioner 'image': keep_luma needs 3 channels, got {self.spec.channels}")
        object.__setattr__(self, "keys", frozenset({"image", "mask"} if self.feed_mask else {"image"}))

    def network_fields(self) -> dict[str, Any]:
        """Return the channels of the image, and whether there is a mask."""
        return {"image_channels": self.spec.channels, "mask": self.feed_mask}

    # Conditioning -----------------------------------------------------------------------------------------------------

    def _entries(self, given: Mapping[str, Any], noise: jax.Array) -> dict[str, Any]:
        missing = jnp.asarray(given["missing"]) > 127
        image = {"image": jnp.where(missing, noise, to_float(given["degraded"]))}
        return image | ({"mask": missing.astype(jnp.float32)} if self.feed_mask else {})

    def training(self, batch: Mapping[str, Any], key: jax.Array, train: bool) -> dict[str, Any]:
        """Return the batch's degraded images, noise where pixels are missing."""
        self._check_degraded(batch)
        return self._entries(batch, jax.random.normal(named(key, "fill"), jnp.shape(batch["degraded"])))

    def sampling(self, request: Mapping[str, Any], key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict[str, Any]:
        """Return the request's degraded images, noise where pixels are missing."""
        return self._entries(request, per_example(key, "fill", indices, self.spec.shape))

    def known(self, given: Mapping[str, Any]) -> Known:
        """Return the known pixels; where nothing is missing all are made."""
        missing = jnp.asarray(given["missing"]) > 127
        return Known(to_float(given["degraded"]), missing | ~missing.any((1, 2, 3), keepdims=True))

    def finish(self, x: jax.Array, request: Mapping[str, Any]) -> jax.Array:
        """Return samples with the luma of what was to be colorized, where that is kept."""
        if not (self.keep_luma and "task" in request):
            return x
        grey = (jnp.asarray(request["task"]) == TASKS.index("colorize"))[:, None, None, None]
        return jnp.where(grey, with_luma(x, to_float(request["degraded"])[..., :1]), x)

    def check_process(self, process: Process) -> None:
        """Raise a `ConfigError` for a prediction that scales the network's input, or another than Gaussian noise."""
        gaussian(process, "conditioner 'image'", "other conditioners")
        half = jnp.float32(0.6)
        if float(process.prediction.input_scale(half, half)) != 1:
            raise ConfigError(
                "conditioner 'image': known pixels are shown to the network in place of x_t's, but the prediction "
                f"{process.prediction.name!r} scales its input; use 'eps', 'v' or 'x0'"
            )

    def check_data(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` unless the data have a degradation."""
        if pipeline.degradation is None:
            raise ConfigError("conditioner 'image' needs data.degradation, such as 'mixture', 'colorize' or 'inpaint'")

    # Requests ---------------------------------------------------------------------------------------------------------

    def request(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch's degraded images, which of their pixels are missing, and their tasks."""
        self._check_degraded(batch)
        return {name: batch[name] for name in self.columns if name in batch}

    def _check_degraded(self, given: Mapping[str, Any]) -> None:
        lacking = [name for name in ("degraded", "missing") if name not in given]
        if lacking:
            raise ConfigError(
                f"conditioner 'image' needs {' and '.join(map(repr, lacking))} (has: {sorted(given)}): set data.degradation, "
                "such as 'mixture' or 'colorize'"
            )

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` unless image and mask have the trained size, and the mask its two values."""
        self._check_degraded(request)
        image, mask = tuple(request["degraded"].shape[1:]), tuple(request["missing"].shape[1:])
        if image != self.spec.shape:
            raise ConfigError(f"degraded images have the shape {image}, the model was trained on {self.spec.shape}")
        if mask != (*image[:2], 1):
            raise ConfigError(f"masks have the shape {mask}, their images {image}: mask and image must have one size")
        _check_mask(request["missing"])
        check_pixels(request["degraded"])

    def data_overrides(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Return the degradation that --task names, for held-out images."""
        return {"degradation": given["task"]} if "task" in given else {}

    def from_flags(self, given: Mapping[str, str], source: DataOf) -> tuple[Columns, int | None]:
        """Return a person's images and masks, or their images with a task done to them."""
        images, masks, task = (given.get(name) for name in ("images", "masks", "task"))
        if task is not None:
            check_choice("task", task, TASKS)
        if masks is not None and images is None:
            raise ConfigError("--masks belong to --images: give the folder of the images too")
        if masks is not None and task not in (None, "inpaint"):
            raise ConfigError(f"--masks are for inpainting, not for the task {task!r}: leave one of the two out")
        if images is None:
            return {}, None
        if masks is not None:
            return self._masked(Path(images), Path(masks)), None
        return self._degraded(images, task, source), None

    def _degraded(self, images: str, task: str | None, source: DataOf) -> Columns:
        """All of a person's images, whatever is held out elsewhere; nothing at random but the degradation."""
        own = source.pipeline("test")
        chosen = "colorize" if task == _AS_THEY_ARE else task or own.degradation
        folder = {"name": "folder", "path": images, "test_fraction": 0.0}
        fields = {"image_size": self.spec.size, "channels": self.spec.channels, "batch_size": 1, "resize": "area"}
        pipeline = data.from_config({**fields, "source": folder, "degradation": chosen}, seed=own.seed)
        columns = gather(self.request, pipeline)
        if task == _AS_THEY_ARE:
            columns["degraded"] = np.concatenate([batch["image"] for batch in pipeline.one_pass(256)])
            columns["task"] = np.full_like(columns["task"], TASKS.index(_AS_THEY_ARE))
        return columns if pipeline.num_classes else {name: columns[name] for name in self.columns}

    def _masked(self, images: Path, masks: Path) -> Columns:
        """Each image with the mask of its name."""
        rows = []
        for path, image, mask in masked_images(images, masks):
            try:
                rows.append(with_mask(fitted(image, self.spec.size, self.spec.channels), fitted(mask, self.spec.size, 1)))
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


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


def luma(images: jax.Array) -> jax.Array:
    """Return the ITU-R 601 luma of [..., 3], as [..., 1]; of one channel, the channel itself."""
    return images if images.shape[-1] == 1 else (images * jnp.array(_LUMA)).sum(-1, keepdims=True)


def with_luma(images: jax.Array, wanted: jax.Array) -> jax.Array:
    """Give colours in [-1, 1] another luma exactly: what differs from grey is kept, and reduced where it leaves the range.

    Args:
      images: [B, H, W, 3].
      wanted: [B, H, W, 1] in [-1, 1].

    >>> found = luma(with_luma(jnp.array([[[[1.0, -1.0, 0.5]]]]), jnp.array([[[[0.9]]]])))
    >>> round(float(found[0, 0, 0, 0]), 5)
    0.9
    """
    colour = images - luma(images)
    room = jnp.where(colour > 0, 1 - wanted, 1 + wanted) / jnp.maximum(jnp.abs(colour), 1e-6)
    return wanted + jnp.clip(room.min(-1, keepdims=True), 0, 1) * colour


def panorama(
    system: Any, params: Any, key: jax.Array, images: jax.Array, sampling: Sampling, *, applications: int = 8,
    side: str = "right",
) -> jax.Array:  # fmt: skip
    """Make images wider by uncropping again and again: each time half of the image size is added beyond the last half.

    Args:
      system: conditioned on an image, and trained to uncrop.
      params: of the system.
      key: of the run; each application has its own.
      images: uint8 [N, H, W, C].
      applications: how many times.
      side: "right" or "left".

    Returns:
      uint8 [N, H, W + applications * (W // 2), C]; what was given, and what was made before, stays to the last bit.

    Source: Saharia et al. 2022, section 4.3 (arXiv 2111.05826).
    """
    check_choice("panorama: side", side, ("left", "right"))
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
