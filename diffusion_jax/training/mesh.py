"""Meshes and shardings: one mesh of ("data", "fsdp", "tensor"), rules by parameter path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
_SMALL = 1024  # leaves with fewer elements are replicated


def make_mesh(config: Mapping[str, Any], devices: Any = None) -> Mesh:
    """The mesh of a run.

    Args:
      config: sizes of "data", "fsdp" and "tensor"; one of them may be -1, the devices that are left.
      devices: all by default.

    Raises:
      ConfigError: sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [int(config[axis]) for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"mesh: data, fsdp and tensor must be positive, one of them may be -1; got {sizes}")
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(len(devices) // fixed, 1)
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f"mesh: data x fsdp x tensor = {' x '.join(map(str, sizes))} = {math.prod(sizes)}, "
            f"but there are {len(devices)} devices"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of the batch axis: over data and fsdp."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Raise a `ConfigError` for a global batch that the devices, or the microbatches, cannot share."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shards * accumulate):
        raise ConfigError(
            f"data.batch_size {batch_size} does not divide over {shards} devices (data x fsdp)"
            + (f" x {accumulate} microbatches" if accumulate > 1 else "")
            + f"; use a multiple of {shards * accumulate}"
        )


def _default_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Output features over "tensor", the largest remaining axis that divides over "fsdp"."""
    spec: list[str | None] = [None] * len(shape)
    if math.prod(shape) < _SMALL:
        return P()
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    if tensor > 1 and shape[-1] % tensor == 0:
        spec[-1] = "tensor"
    free = [i for i, size in enumerate(shape) if spec[i] is None and size % fsdp == 0]
    if fsdp > 1 and free:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return P(*spec)


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as "params/down0_0_res/conv_in/kernel"."""
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def state_shardings(mesh: Mesh, abstract: Any, rules: Any = ()) -> Any:
    """A sharding for every leaf of an abstract state.

    Args:
      rules: pairs (regular expression searched in the leaf's path, list with an axis name or None per dimension); the
        first that matches wins, others follow the default. Optimiser moments have their parameter's path at the end.

    Raises:
      ConfigError: a rule that names an unknown axis, or does not fit the leaf.
    """
    rules = [(re.compile(pattern), tuple(spec)) for pattern, spec in rules]

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if pattern.search(name) and len(spec) <= len(leaf.shape):
                _check_rule(mesh, name, spec, leaf.shape)
                return NamedSharding(mesh, P(*spec))
        return NamedSharding(mesh, _default_spec(leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def _check_rule(mesh: Mesh, name: str, spec: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    for axis, size in zip(spec, shape, strict=False):
        if axis is not None and axis not in AXES:
            raise ConfigError(f"mesh.rules: {name} is sharded over {axis!r} (known: {', '.join(AXES)}, None)")
        if axis is not None and size % mesh.shape[axis]:
            raise ConfigError(f"mesh.rules: {name} has the shape {shape}; {size} does not divide over {axis!r}")


def put_batch(batch: Mapping[str, Any], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This host's rows as part of the global batch; what is not numeric (captions) stays behind."""
    numeric = {key: value for key, value in batch.items() if np.asarray(value).dtype != object}
    return {key: jax.make_array_from_process_local_data(sharding, np.asarray(value)) for key, value in numeric.items()}
