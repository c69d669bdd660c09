"""Many samples from a cascade: compiled once, sharded over all devices, sample i the same whatever the batch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from diffusion_jax.inference.cascade import Cascade, StageParams
from diffusion_jax.rng import named
from diffusion_jax.training import mesh as meshes

_LOG = logging.getLogger(__name__)

RequestRows = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Sample indices int [N] -> their conditioning, [N, ...] each."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Some samples.

    Attributes:
      indices: int [N], which samples these are.
      request: their conditioning.
      images: of each stage, as the data have them: uint8 [N, H_k, W_k, C] of images.
    """

    indices: np.ndarray
    request: dict[str, np.ndarray]
    images: list[np.ndarray]


class Generator:
    """Draws samples of a cascade by their index. Where there are several processes, all must draw the same samples.

    Args:
      cascade: what to sample.
      params: of each stage. What lies on the mesh stays as it is, what does not is copied to every device.
      seed: of the run. Sample i depends on (seed, i) and its request alone: not on the batch, the devices or the order.
      batch_size: samples at a time over all devices; rounded up to a multiple of their number.
      mesh: that of the parameters by default, or all devices.
      every_stage: bring back the images of all stages; otherwise only those of the last.
    """

    def __init__(
        self,
        cascade: Cascade,
        params: Sequence[StageParams],
        *,
        seed: int = 0,
        batch_size: int = 64,
        mesh: Mesh | None = None,
        every_stage: bool = False,
    ) -> None:
        mesh = mesh or mesh_of(params) or meshes.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        self.cascade, self._rows = cascade, meshes.batch_sharding(mesh)
        shards = meshes.batch_shards(mesh)
        self.batch_size = -(-batch_size // shards) * shards
        self._params, self._began = on_mesh(list(params), mesh), False

        def sample(params: Any, request: Any, indices: jax.Array) -> list[jax.Array]:
            images = cascade.sample(params, named(jax.random.key(seed), "sample"), request, indices)
            drawn = list(zip(cascade.stages, params, images, strict=True))
            return [stage.system.codec.decode(w.frozen, x) for stage, w, x in (drawn if every_stage else drawn[-1:])]

        # Every process has every sample: whoever writes or measures them needs no one else's.
        self._sample = jax.jit(sample, out_shardings=self._rows if jax.process_count() == 1 else meshes.replicated(mesh))

    def __call__(self, indices: Sequence[int], requests: RequestRows) -> Iterator[Drawn]:
        """Draw these samples in this order, a batch at a time; the next batch is computed while one is used.

        Raises:
          ConfigError: a request that the cascade does not take, before anything is compiled.
        """
        waiting: tuple[np.ndarray, dict[str, np.ndarray], list[jax.Array]] | None = None
        for start in range(0, len(indices), self.batch_size):
            part = np.asarray(indices[start : start + self.batch_size], np.int32)
            request = requests(part)
            self.cascade.check_request(request)
            if not start and not self._began:
                self._began = True
                _LOG.info("Compiling for batches of %d; the first images follow.", self.batch_size)
            images = self._sample(*self._arguments(part, request))
            if waiting is not None:
                yield _fetch(*waiting)
            waiting = part, request, images
        if waiting is not None:
            yield _fetch(*waiting)

    def _arguments(self, indices: np.ndarray, request: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """Of the compiled program; a short batch is padded with its last row, so that one program serves all."""
        missing = self.batch_size - len(indices)
        padded = jax.tree.map(lambda rows: _pad(np.asarray(rows), missing), {"indices": indices, "request": request})
        placed = place(padded, self._rows)
        return self._params, placed["request"], placed["indices"]


def mesh_of(params: Any) -> Mesh | None:
    """Return the mesh on which arrays lie; None where they lie on none."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            return leaf.sharding.mesh
    return None


def on_mesh(params: Any, mesh: Mesh) -> Any:
    """Return arrays on a mesh: those that lie on it as they are, others copied to every device."""
    whole = meshes.replicated(mesh)
    there = lambda leaf: isinstance(leaf, jax.Array) and mesh_of(leaf) == mesh  # noqa: E731
    return jax.tree.map(lambda leaf: leaf if there(leaf) else place(leaf, whole), params)


def place(arrays: Any, sharding: NamedSharding) -> Any:
    """Return host arrays, the same on every process, as arrays over the devices of all processes."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index, x=x: np.asarray(x)[index]), arrays
    )


def place_batch(batch: Any, params: Any) -> Any:
    """Return a batch beside parameters: its rows split over their mesh where they divide, else whole on every device."""
    mesh = mesh_of(params)
    if mesh is None:
        return batch
    size = len(jax.tree.leaves(batch)[0])
    return place(batch, meshes.batch_sharding(mesh) if size % meshes.batch_shards(mesh) == 0 else meshes.replicated(mesh))


def _pad(rows: np.ndarray, missing: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def _fetch(indices: np.ndarray, request: dict[str, np.ndarray], images: list[jax.Array]) -> Drawn:
    return Drawn(indices, request, [np.asarray(stage)[: len(indices)] for stage in images])
