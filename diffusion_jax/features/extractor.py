"""Features of images: a network, how images are made ready for it, and passes of many images through it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax import processes
from diffusion_jax.errors import DataError
from diffusion_jax.features.resizing import Preprocessing

BATCH = 256  # images that are read at a time


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
      size: (H, W) of the images, where no other is taken.
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
    size: tuple[int, int] | None = None
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
        if self.size is not None and images.shape[1:3] != self.size:
            height, width = self.size
            raise DataError(f"{self.name} takes images of {height}x{width} pixels, got the shape {images.shape}")
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


def limited(batches: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """Yield the batches up to so many images."""
    left = limit
    for images in batches:
        if left is not None:
            images = images[:left]
            left -= len(images)
        if not len(images):
            return
        yield images


def own_turns(batches: Iterable[np.ndarray], counts: list[int] | None = None) -> Iterator[np.ndarray]:
    """Yield the batches that are this process's turn; the length of every batch is appended to `counts`."""
    for number, images in enumerate(batches):
        if counts is not None:
            counts.append(len(images))
        if number % jax.process_count() == jax.process_index():
            yield images


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the same items, each asked for before the one before it is used: what is asked for is computed meanwhile."""
    waiting = next(items, None)
    while waiting is not None:
        after = next(items, None)
        yield waiting
        waiting = after


def features_of(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> dict[str, np.ndarray]:
    """Return all outputs by name, float32 [N, D], on every process; the images are not kept.

    Where there are several processes each takes its turn of the batches; all must call this.

    Args:
      batches: uint8 [n, H, W, C], the same on every process.
      limit: stop after this many images.
    """
    counts: list[int] = []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in extractor.dims}
    for outputs in one_ahead(map(extractor, own_turns(limited(batches, limit), counts))):
        for name, rows in outputs.items():
            parts[name].append(np.asarray(rows))
    if jax.process_count() == 1:
        return {name: np.concatenate(rows) for name, rows in parts.items()}
    ends = np.cumsum(counts)
    found = {}
    for name, own in parts.items():
        rows = np.zeros((ends[-1], extractor.dims[name]), np.float32)
        for number, part in zip(range(jax.process_index(), len(counts), jax.process_count()), own, strict=True):
            rows[ends[number] - counts[number] : ends[number]] = part
        found[name] = processes.gather_rows(rows)
    return found
