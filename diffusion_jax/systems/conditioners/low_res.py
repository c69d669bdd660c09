"""A low-resolution image, with noise-conditioning augmentation: what makes a stage of a cascade."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.data.files import image_files, size_in_header
from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.files import user_path
from diffusion_jax.npz import read_npz
from diffusion_jax.process import Process
from diffusion_jax.registry import register
from diffusion_jax.rng import named
from diffusion_jax.spec import Size, Spec, size_of
from diffusion_jax.systems.codecs.pixels import check_pixels, to_float, to_uint8
from diffusion_jax.systems.conditioners.base import Columns, Conditioner, DataOf, Flag, crop_like, per_example, spec_field
from diffusion_jax.systems.parts import build_process
from diffusion_jax.systems.sampling import Sampling
from diffusion_jax.values import Fraction, Positive

RESIZE_METHODS = ("area", "bilinear", "bicubic")


@register("conditioner", "low_res")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRes(Conditioner):
    """An upsampled low-resolution image, concatenated with x_t, perhaps with noise of a level that the network is given too.

    In training it is made from the batch and then corrupted by a process of its own, at a level drawn uniformly. So one set of
    parameters accepts exact images (level 0), images of an imperfect earlier stage (a small level), and none at all (level 1).
    Requests have "low_res" uint8 or float [N, h, w, C], or "corrupted", which is at the augmentation level already.

    Args:
      size: of the low-resolution image, in pixels or (height, width).
      resize: "area" (integer factors), "bilinear" or "bicubic": how it is made from the batch, anti-aliased.
      aug_schedule: the schedule of the augmentation's process; None is plain conditioning, without a level.
      aug_levels: (low, high): the range in [0, 1] of the levels drawn in training.
      blur_prob: the probability of a Gaussian 3x3 blur of the low-resolution image, in training only.
      blur_sigma: (low, high) of the blur's standard deviation, in low-resolution pixels.
      crop_size: train on random crops of so many pixels, or (height, width), and the low-resolution crops that belong to them;
        a fully convolutional network is then sampled at the whole size. None trains on whole images.

    Sources: Ho et al. 2021, section 4 (arXiv 2106.15282); Saharia et al. 2022, section 2.2 and, of crops, appendix F
    (arXiv 2205.11487); blur: Saharia et al. 2021 (arXiv 2104.07636).
    """

    size: Size
    resize: str = "area"
    aug_schedule: Any = "cosine_continuous"
    aug_levels: tuple[Fraction, Fraction] = (0.0, 1.0)
    blur_prob: Fraction = 0.0
    blur_sigma: tuple[Positive, Positive] = (0.4, 0.6)
    crop_size: Size | None = None
    spec: Spec = spec_field()

    name = "low_res"
    columns = ("low_res", "corrupted")
    flags = (Flag("input", "Low-resolution images: a folder, or an npz of arr_0 and, for labels, arr_1."),)
    needs_data = True
    takes_previous = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "size", size_of(self.size))
        object.__setattr__(self, "keys", frozenset({"low_res", "aug_level"} if self.aug_schedule is not None else {"low_res"}))
        self._check_sizes()
        low, high = self.aug_levels
        if low > high:
            raise ConfigError(f"conditioner 'low_res': aug_levels must be (low, high), low <= high, got {low, high}")

    def _check_sizes(self) -> None:
        check_choice("conditioner 'low_res': resize", self.resize, RESIZE_METHODS)
        whole = self.spec.size
        if any(small > large for small, large in zip(self.size, whole, strict=True)):
            raise ConfigError(f"conditioner 'low_res': size {self.size} must lie within image_size {whole}")
        divides = all(large % small == 0 for small, large in zip(self.size, whole, strict=True))
        if self.resize == "area" and not divides:
            raise ConfigError(
                f"conditioner 'low_res': resize 'area' needs size {self.size} to divide image_size {whole}; use 'bicubic'"
            )
        if self.crop_size is None:
            return
        object.__setattr__(self, "crop_size", size_of(self.crop_size))
        triples = zip(self.crop_size, self.size, whole, strict=True)
        if not divides or any(crop % (large // small) or crop > large for crop, small, large in triples):
            raise ConfigError(
                f"conditioner 'low_res': crop_size {self.crop_size} must be a multiple of image_size / size = {whole} / "
                f"{self.size}, a whole number, and at most image_size"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (h, w, C) of the low-resolution image."""
        return (*self.size, self.spec.channels)

    @property
    def aug_process(self) -> Process | None:
        """Return the process that corrupts the low-resolution image; nothing is ever predicted of it."""
        if self.aug_schedule is None:
            return None
        return build_process({"schedule": self.aug_schedule, "prediction": "x0", "noise_input": "rescaled_timestep"})

    def network_fields(self) -> dict[str, Any]:
        """Return the size of the image, and whether there is a level."""
        square = self.size[0] if self.size[0] == self.size[1] else self.size
        return {"low_res_channels": self.spec.channels, "low_res_size": square, "aug_level": self.aug_schedule is not None}

    # The image and its corruption -------------------------------------------------------------------------------------

    def prepare(self, batch: Mapping[str, Any], key: jax.Array, train: bool) -> Mapping[str, Any]:
        """Crop to crop_size, at edges that lie on pixels of the low resolution; centrally unless training."""
        if self.crop_size is None:
            return batch
        whole, factors = self.spec.size, [large // small for large, small in zip(self.spec.size, self.size, strict=True)]
        places = [(large - crop) // f + 1 for large, crop, f in zip(whole, self.crop_size, factors, strict=True)]
        count = len(batch["image"])
        corner = jnp.broadcast_to(jnp.asarray([(n - 1) // 2 for n in places]), (count, 2))
        if train:
            corner = jax.random.randint(named(key, "crop"), (count, 2), 0, jnp.asarray(places))
        return crop_like(batch, whole, corner * jnp.asarray(factors), self.crop_size)

    def reduce(self, images: jax.Array) -> jax.Array:
        """Make clean low-resolution images of float images [B, H, W, C], whole or crops."""
        shares = [large / small for large, small in zip(self.spec.size, self.size, strict=True)]
        size = tuple(round(side / share) for side, share in zip(images.shape[1:3], shares, strict=True))
        return downsample(images, size, self.resize)

    def corrupt(self, low_res: jax.Array, level: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        """Return the entries of `cond` for a clean image at an augmentation level.

        Args:
          low_res: clean, float [B, h, w, C] in [-1, 1].
          level: [B] in [0, 1]: 0 is the image itself, 1 is noise.
          noise: standard normal, like low_res.
        """
        if self.aug_process is None:
            return {"low_res": low_res}
        return self.at_level(self.aug_process.diffuse(low_res, level, noise), level)

    def at_level(self, corrupted: jax.Array, level: jax.Array) -> dict[str, jax.Array]:
        """Return the entries of `cond` for an image that is already at the level."""
        return {"low_res": corrupted, "aug_level": self.aug_process.noise_level(level)}

    def training(self, batch: Mapping[str, Any], key: jax.Array, train: bool) -> dict[str, Any]:
        """Return reduced images, perhaps blurred, at levels drawn uniformly."""
        low_res, count = self.reduce(to_float(batch["image"])), len(batch["image"])
        if train and self.blur_prob:
            sigma = jax.random.uniform(named(key, "blur sigma"), (count,), minval=self.blur_sigma[0], maxval=self.blur_sigma[1])
            low_res = blur(low_res, jnp.where(jax.random.bernoulli(named(key, "blur"), self.blur_prob, (count,)), sigma, 0.0))
        level = jax.random.uniform(named(key, "level"), (count,), minval=self.aug_levels[0], maxval=self.aug_levels[1])
        return self.corrupt(low_res, level, jax.random.normal(named(key, "noise"), low_res.shape))

    def sampling(self, request: Mapping[str, Any], key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict[str, Any]:
        """Return the request's images at the sampling's augmentation level."""
        level = jnp.full(indices.shape, sampling.aug_level, jnp.float32)
        if "corrupted" in request:
            return self.at_level(request["corrupted"], level)
        return self.corrupt(to_float(request["low_res"]), level, per_example(key, "noise", indices, self.shape))

    # Requests ---------------------------------------------------------------------------------------------------------

    def request(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch's low-resolution images, as bytes."""
        return {"low_res": to_uint8(self.reduce(to_float(batch["image"])))}

    def from_flags(self, given: Mapping[str, str], source: DataOf) -> tuple[Columns, int | None]:
        """Return the images that --input names, and the labels that come with them."""
        return (low_res_from(given["input"], self.shape) if "input" in given else {}), None

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise a `ConfigError` for an augmentation level of a model trained without augmentation."""
        if self.aug_schedule is None and (sampling.aug_level or sampling.truncated):
            raise ConfigError(
                "this super-resolution model was trained without noise-conditioning augmentation: "
                "set aug_level to 0 and truncated to False"
            )

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` unless there are low-resolution images of the trained size."""
        low_res = request.get("corrupted", request.get("low_res"))
        if low_res is None:
            raise ConfigError(f"super-resolution needs 'low_res' images in its request (has: {sorted(request)})")
        if tuple(low_res.shape[1:]) != self.shape:
            raise ConfigError(
                f"low-resolution images have the shape {tuple(low_res.shape[1:])}, the model was trained on {self.shape}"
            )
        if "corrupted" not in request:
            check_pixels(low_res)


def low_res_from(path: str, shape: tuple[int, int, int]) -> Columns:
    """Read a person's low-resolution images: a folder of image files, or an npz of arr_0 uint8 [N, h, w, C] and arr_1 labels.

    Args:
      shape: (h, w, C) of the images that the model takes; files of a folder are cropped and reduced to it.

    Raises:
      DataError: nothing there, of another shape, or an image that is already smaller.
    """
    path = user_path(path)
    if not path.exists():
        raise DataError(f"no low-resolution images at {path}: it does not exist")
    if path.is_dir():
        for name in image_files(path):
            width, height = size_in_header(name)
            if height < shape[0] or width < shape[1]:
                raise DataError(
                    f"{name} has {width}x{height} pixels, fewer than the low-resolution size "
                    f"{shape[1]}x{shape[0]} that the model takes: enlarge it, or leave it out"
                )
        source = {"name": "folder", "path": str(path), "test_fraction": 0.0}
        pipeline = data.from_config({"source": source, "image_size": shape[:2], "channels": shape[2], "batch_size": 1})
        names = {"image": "low_res"} | ({"label": "label"} if pipeline.num_classes else {})
        batches = list(pipeline.one_pass(256))
        return {ours: np.concatenate([batch[theirs] for batch in batches]) for theirs, ours in names.items()}
    arrays = read_npz(path, "low-resolution images (arr_0 uint8 [N, h, w, C])", wanted={"arr_0", "arr_1"}.__contains__)
    if "arr_0" not in arrays:
        raise DataError(f"{path} has no arr_0: low-resolution images uint8 [N, h, w, C] are needed")
    columns = {ours: arrays[theirs] for theirs, ours in (("arr_0", "low_res"), ("arr_1", "label")) if theirs in arrays}
    labels = columns.get("label")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != columns["low_res"].shape[:1]):
        raise DataError(f"{path}: arr_1 must be labels, whole numbers [N], got {labels.dtype} {labels.shape}")
    images = columns["low_res"]
    if images.dtype != np.uint8 or images.shape[1:] != tuple(shape) or not len(images):
        raise DataError(
            f"{path}: arr_0 is {images.dtype} {images.shape}, the model takes uint8 [N, {', '.join(map(str, shape))}]"
        )
    return columns


def downsample(images: jax.Array, size: tuple[int, int], method: str = "area") -> jax.Array:
    """Reduce [B, H, W, C] to [B, *size, C], anti-aliased.

    Args:
      method: "area" is the exact mean over blocks and needs integer factors; "bilinear" and "bicubic" are widened by
        the factor, as PIL does it.
    """
    batch, height, width, channels = images.shape
    if (height, width) == tuple(size):
        return images
    if method == "area":
        rows, columns = height // size[0], width // size[1]
        if (rows * size[0], columns * size[1]) != (height, width):
            raise ConfigError(
                f"area resize from {height}x{width} to {size[0]}x{size[1]} needs integer factors; use resize='bicubic'"
            )
        return images.reshape(batch, size[0], rows, size[1], columns, channels).mean((2, 4))
    kind = {"bilinear": "linear", "bicubic": "cubic"}[method]
    return jax.image.resize(images, (batch, *size, channels), kind, antialias=True)


def blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur by a 3x3 Gaussian filter with a standard deviation of its own per image; edges are repeated.

    Args:
      images: [B, H, W, C].
      sigma: [B], in pixels; 0 leaves the image as it is.
    """
    side = jnp.where(sigma > 0, jnp.exp(-0.5 / jnp.maximum(sigma, 1e-6) ** 2), 0.0)[:, None, None, None]
    total = 1 + 2 * side
    padded = jnp.pad(images, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    images = (side * (padded[:, :-2] + padded[:, 2:]) + padded[:, 1:-1]) / total
    padded = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    return (side * (padded[:, :, :-2] + padded[:, :, 2:]) + padded[:, :, 1:-1]) / total
