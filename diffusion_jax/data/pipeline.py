"""Batches as a function of (seed, step, host): seeded shuffles, resumable at any step, on any number of hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from absl import flags

import diffusion_jax.data.degradations  # noqa: F401  (registers them by name)
from diffusion_jax.data.augment import NonLeaky
from diffusion_jax.data.cache import Cache
from diffusion_jax.data.sources.base import Example, Source
from diffusion_jax.data.transforms import Crop, Fit
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.lazy import lazy
from diffusion_jax.registry import build
from diffusion_jax.spec import Spec
from diffusion_jax.values import Count, Fraction, Natural, NonNegative

grain = lazy("grain")

Batch = dict[str, Any]


def numeric(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return what of a batch a network can be given: its arrays of numbers, without captions and other objects."""
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    return {name: array for name, array in arrays.items() if array.dtype != object}


Degradation = Callable[[np.ndarray, np.random.Generator], dict[str, Any]]
"""(image uint8 [H, W, C], generator) -> what an example gets beside its image."""

_DEGRADATION = 7919  # keeps these draws apart from others of the same seed
_EPOCHS = 10**8  # for ever; an endless repetition has no length that can be sliced by host


def _finish(example: Example, crop: Crop, rng: np.random.Generator | None) -> Example:
    """Crop (and flip) the image, and the mask with it; all else becomes an array, texts of objects."""
    finished = {key: np.asarray(value, object if isinstance(value, str) else None) for key, value in example.items()}
    if "label" in example:
        finished["label"] = np.int32(example["label"])
    if "mask" not in example:
        return {**finished, "image": crop(example["image"], rng)}
    channels = example["image"].shape[-1]
    joined = crop(np.concatenate([example["image"], example["mask"]], axis=-1), rng)
    return {**finished, "image": joined[..., :channels], "mask": joined[..., channels:]}


class _Augment:
    """The random part, its generator tied to the example's global position: another one each epoch."""

    def __init__(self, crop: Crop, augment: NonLeaky | None, degradation: Degradation | None) -> None:
        self._crop, self._augment, self._degradation = crop, augment, degradation

    def __call__(self, element: Example, rng: np.random.Generator) -> Example:
        finished = _finish(element, self._crop, rng)
        if self._augment is not None:
            finished["image"], finished["augment"] = self._augment(finished["image"], rng)
        return finished if self._degradation is None else {**finished, **self._degradation(finished["image"], rng)}


def _stack(examples: list[Example]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Makes training batches of a source, and goes once over it for evaluation.

    Args:
      source: a `Source`.
      image_size: (height, width) of the images in pixels, or one number for squares.
      batch_size: of the global batch, over all hosts; epochs run together inside a batch.
      channels: 1 or 3.
      resize, pad: see `Fit`; crop, flip: see `Crop`. None, which is how a command line reads none, is the crop "none".
      augment: above 0, the probability of EDM's non-leaky augmentation, see `augment.NonLeaky`: images of training batches
        are then float32 in [-1, 1], and "augment" float32 [b, 9] says what was done to each.
      seed: of shuffles and augmentation.
      host, hosts: which rows of every global batch this process takes.
      num_threads, prefetch: threads that prepare batches ahead, and how many batches ahead.
      num_workers: processes instead of threads, for large images.
      cache: how many GiB of memory fitted images may take (what does not fit is read anew whenever it is needed), or a `Cache`
        that pipelines share. Worker processes keep none.
      degradation: a name or configuration of `data.degradations`: what it makes of the finished image joins the example.
        In training it is drawn anew each epoch; in `one_pass` it depends on (seed, index) alone.

    Raises:
      ConfigError: a batch that the hosts cannot share, unknown transforms, a bad size.
      DataError: an empty source.
    """

    source: Source
    image_size: Count | tuple[Count, Count]
    batch_size: Count
    channels: Literal[1, 3] = 3
    resize: Literal["area", "bicubic", "bilinear", "adm"] = "area"
    pad: Natural = 0
    crop: Literal["center", "random", "zoom", "none"] | None = "center"
    flip: bool = False
    augment: Fraction = 0.0
    seed: Natural = 0
    host: Natural = 0
    hosts: Count = 1
    num_threads: Count = 4
    prefetch: Natural = 4
    num_workers: Natural = 0
    cache: NonNegative | Cache = 1.0
    degradation: Any = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.hosts:
            raise ConfigError(
                f"data: batch_size {self.batch_size} does not divide over {self.hosts} host{'s' * (self.hosts > 1)}; "
                f"use a multiple of {self.hosts}"
            )
        if not len(self.source):
            raise DataError(f"the source {self.source.name!r} has no examples")
        if self.augment and self.flip:
            raise ConfigError("data: augment flips images itself, and says so: set flip to False")
        augment = NonLeaky(self.augment) if self.augment else None
        crop = Crop(self.image_size, self.crop or "none", self.flip)
        degradation = None if self.degradation is None else build("degradation", self.degradation)
        if degradation is not None and self.augment:
            raise ConfigError("data: degradations are made of plain images: leave augment at 0, or degradation out")
        cache = self.cache if isinstance(self.cache, Cache) else Cache(self.cache)
        fitted = cache.fitted(self.source, Fit(crop.source_size, self.channels, self.resize, self.pad))
        examples = grain.MapDataset.source(fitted).seed(self.seed).shuffle().repeat(_EPOCHS)
        examples = examples.random_map(_Augment(crop, augment, degradation))
        batches = examples.batch(self.batch_size // self.hosts, batch_fn=_stack)
        # Batch first, then every hosts-th: consecutive slices of a global batch go to consecutive hosts.
        object.__setattr__(self, "_batches", batches[self.host :: self.hosts])
        object.__setattr__(self, "_fitted", fitted)
        object.__setattr__(self, "_crop", crop)
        object.__setattr__(self, "_degradation", degradation)

    @property
    def num_classes(self) -> int:
        """Of the source; 0 where it has none."""
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the source, by label."""
        return self.source.class_names

    @property
    def spec(self) -> Spec:
        """The shape and kind of one example: (H, W, C) of an image."""
        return Spec.image(self.image_size, self.channels)

    @property
    def skipped(self) -> int:
        """How many corrupt images the source left out."""
        return getattr(self.source, "skipped", 0)

    def __len__(self) -> int:
        """The number of examples in an epoch."""
        return len(self.source)

    def batch(self, step: int) -> Batch:
        """Return this host's rows of the global batch of a step, from 0.

        Returns:
          {"image": uint8 [b, H, W, C], and where the source has them "label": int32 [b], "mask": uint8 [b, H, W, 1],
          "caption": object [b], "text": floating [b, L, D], "text_mask": bool [b, L], "text_pooled": floating [b, D'],
          or whatever else}, and what the degradation makes.
        """
        return self._batches[step]

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield endless batches from a step on, prepared ahead: exactly batch(start), batch(start + 1), ..."""
        options = grain.ReadOptions(num_threads=self.num_threads, prefetch_buffer_size=self.prefetch)
        dataset = self._batches[start:].to_iter_dataset(options)
        if self.num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # worker processes read absl's flags
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.num_workers))
        return iter(dataset)

    def one_pass(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the examples in order, once, centre-cropped and unflipped; the last batch may be short.

        Args:
          limit: stop after this many examples.
        """
        total = len(self.source) if limit is None else min(limit, len(self.source))
        with ThreadPoolExecutor(max(1, self.num_threads)) as pool:
            for start in range(0, total, batch_size):
                yield _stack(list(pool.map(self._plain, range(start, min(start + batch_size, total)))))

    def _plain(self, index: int) -> Example:
        """An example without augmentation, degraded as its index says."""
        example = _finish(self._fitted[index], self._crop, None)
        if self._degradation is None:
            return example
        rng = np.random.default_rng([self.seed, _DEGRADATION, index])
        return {**example, **self._degradation(example["image"], rng)}
