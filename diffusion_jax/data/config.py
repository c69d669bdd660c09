"""The data of a run from its configuration: each split opened once, its images read once for all who ask."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from diffusion_jax.data.cache import Cache
from diffusion_jax.data.pipeline import Pipeline
from diffusion_jax.data.record import Recorded
from diffusion_jax.data.sources.base import Source
from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import build, check_fields
from diffusion_jax.spec import Spec


class Data:
    """The splits of a run's data: opened when they are first needed, and shared by all pipelines made of them.

    Pipelines of the same split share the source, and those with the same fit (image size, channels, resize, pad, and whether
    they zoom) the fitted images too, as far as `data.cache` GiB of memory reach for all of them together.

    Args:
      config: the fields of `Pipeline`, with "source" as a name or {"name": ..., ...}. A source's `test_split` field says what
        stands for "test" where its splits have other names.
      seed: of shuffles, augmentation and degradations.
      recorded: what the data were; each split is compared with it when it is opened.

    Raises:
      ConfigError: no source, or unknown fields. What is wrong with the source itself is found when it is opened.

    >>> run = Data({"source": "digits", "image_size": 8, "channels": 1, "batch_size": 64})
    >>> train, test = run.pipeline("train"), run.pipeline("test")
    >>> len(train), len(test), str(run.spec), run.pipeline("test", flip=True).source is test.source
    (1617, 180, '8x8x1 image', True)
    """

    def __init__(self, config: Mapping[str, Any], *, seed: int = 0, recorded: Recorded | None = None) -> None:
        self.config: dict[str, Any] = dict(config.items())
        fields = dict(self.config)
        self._source = fields.pop("source", None)
        if self._source is None:
            raise ConfigError("data needs a 'source', such as {'name': 'folder', 'path': 'my/images'}")
        check_fields("data", Pipeline, {"source": None, "seed": seed, **fields})
        self._fields: dict[str, Any] = {"seed": seed, **fields}
        self._cache = Cache(fields.get("cache", 1.0))
        self._opened: dict[str, Source] = {}
        self._recorded = recorded
        self._lock = threading.Lock()

    @property
    def spec(self) -> Spec:
        """The shape and kind of one example; no source is opened for it."""
        return Spec.image(self._fields["image_size"], self._fields.get("channels", 3))

    def source(self, split: str = "train") -> Source:
        """Return the source of a split: "train" is what the configuration names, "test" is held out.

        Raises:
          ConfigError, DataError: unknown names or fields, or data that cannot be read, or are not those that were recorded.
        """
        with self._lock:
            if split not in self._opened:
                source = _open(self._source, split)
                if self._recorded is not None:
                    self._recorded.check(source, split)
                self._opened[split] = source
            return self._opened[split]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes by label: those recorded, or else those of the training split, which is opened."""
        if self._recorded is not None:
            return tuple(self._recorded.description["class_names"])
        return self.source().class_names

    def pipeline(self, split: str = "train", *, host: int = 0, hosts: int = 1, **overrides: Any) -> Pipeline:
        """Return the pipeline of a split.

        Args:
          host, hosts: which rows of every global batch it gives.
          overrides: fields of `Pipeline` in place of the configured ones, such as `degradation` or `batch_size`.

        Raises:
          ConfigError, DataError: unknown names or fields, or data that cannot be read.
        """
        fields = {**self._fields, "cache": self._cache, **overrides}
        check_fields("data", Pipeline, {"source": None, **fields})
        return Pipeline(self.source(split), **fields, host=host, hosts=hosts)


def _open(source: Any, split: str) -> Source:
    if isinstance(source, str):
        source = {"name": source}
    if hasattr(source, "items"):
        source = dict(source.items())
        test_split = source.pop("test_split", "test")
        if split != "train":
            source["split"] = test_split if split == "test" else split
    return build("source", source)


def from_config(
    config: Mapping[str, Any], *, seed: int = 0, host: int = 0, hosts: int = 1, split: str | None = None
) -> Pipeline:
    """Return one pipeline of a run's `data` configuration, sharing nothing with others; see `Data`.

    Args:
      split: "train" or None is what the configuration names, "test" is held out.

    Raises:
      ConfigError: unknown fields or names; DataError: data that cannot be read.
    """
    return Data(config, seed=seed).pipeline(split or "train", host=host, hosts=hosts)
