"""Many samples from a cascade: compiled once, sharded over the devices, image i the same whatever the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion_jax.inference.cascade import Cascade
from diffusion_jax.rng import named
from diffusion_jax.systems import to_uint8

RequestRows = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Sample indices int [N] -> their conditioning, [N, ...] each."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Some samples.

    Attributes:
      indices: int [N], which samples these are.
      request: their conditioning.
      images: of each stage, uint8 [N, H_k, W_k, C].
    """

    indices: np.ndarray
    request: dict[str, np.ndarray]
    images: list[np.ndarray]


class Generator:
    """Draws samples of a cascade by their index.

    Args:
      cascade: what to sample.
      params: of each stage.
      seed: of the run. Sample i depends on (seed, i) and its request alone: not on the batch, the devices or the order.
      batch_size: samples at a time over all devices; rounded up to a multiple of their number.
      devices: those of this process by default.
      every_stage: bring back the images of all stages; otherwise only those of the last.
    """

    def __init__(
        self,
        cascade: Cascade,
        params: Sequence[Any],
        *,
        seed: int = 0,
        batch_size: int = 64,
        devices: Sequence[Any] | None = None,
        every_stage: bool = False,
    ) -> None:
        devices = list(devices or jax.local_devices())
        mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        self._split, self._whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        self.cascade = cascade
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self._params = jax.device_put(list(params), self._whole)
        self._key = jax.device_put(named(jax.random.key(seed), "sample"), self._whole)

        def sample(params: Any, key: jax.Array, request: Any, indices: jax.Array) -> list[jax.Array]:
            images = cascade.sample(params, key, request, indices)
            return [to_uint8(stage) for stage in (images if every_stage else images[-1:])]

        self._sample = jax.jit(sample, out_shardings=self._split)

    def __call__(self, indices: Sequence[int], rows: RequestRows) -> Iterator[Drawn]:
        """Draw these samples in this order, a batch at a time; the next batch is computed while one is used.

        Raises:
          ConfigError: a request that the cascade does not take, before anything is compiled.
        """
        waiting: tuple[np.ndarray, dict[str, np.ndarray], list[jax.Array]] | None = None
        for start in range(0, len(indices), self.batch_size):
            part = np.asarray(indices[start : start + self.batch_size], np.int32)
            request = rows(part)
            self.cascade.check_request(request)
            images = self._dispatch(part, request)
            if waiting is not None:
                yield _fetch(*waiting)
            waiting = part, request, images
        if waiting is not None:
            yield _fetch(*waiting)

    def _dispatch(self, indices: np.ndarray, request: dict[str, np.ndarray]) -> list[jax.Array]:
        """Start computing a batch; a short one is padded with its last row, so that one program serves all."""
        missing = self.batch_size - len(indices)
        padded = jax.tree.map(lambda rows: _pad(np.asarray(rows), missing), {"indices": indices, "request": request})
        placed = jax.device_put(padded, self._split)
        return self._sample(self._params, self._key, placed["request"], placed["indices"])


def _pad(rows: np.ndarray, missing: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def _fetch(indices: np.ndarray, request: dict[str, np.ndarray], images: list[jax.Array]) -> Drawn:
    return Drawn(indices, request, [np.asarray(stage)[: len(indices)] for stage in images])
