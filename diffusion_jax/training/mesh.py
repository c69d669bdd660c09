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

from diffusion_jax.data import numeric
from diffusion_jax.errors import ConfigError, check_choice

AXES = ("data", "fsdp", "tensor")
_SMALL = 1024  # leaves with fewer elements are replicated


def make_mesh(config: Mapping[str, Any], devices: Any = None) -> Mesh:
    """Make the mesh of a run.

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
    """Return the sharding of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device has a copy of."""
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """Return how many parts a batch is split into over the devices."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def host_share(mesh: Mesh) -> tuple[int, int]:
    """Return (host, hosts): which slice of every global batch this process loads, of how many.

    With the tensor axis across processes, several of them hold the same rows, and load the same slice.

    Raises:
      ConfigError: processes whose rows overlap in part.
    """
    rows: dict[int, set[int]] = {}
    for device, (where,) in batch_sharding(mesh).devices_indices_map((batch_shards(mesh),)).items():
        rows.setdefault(device.process_index, set()).update(range(*where.indices(batch_shards(mesh))))
    shares = sorted({tuple(sorted(found)) for found in rows.values()})
    if sum(map(len, shares)) != batch_shards(mesh) or len(set(map(len, shares))) > 1:
        raise ConfigError(f"mesh: {dict(mesh.shape)} gives processes batches that overlap in part; change fsdp or tensor")
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def check_batch(mesh: Mesh, batch_size: Any, accumulate: int) -> None:
    """Raise a `ConfigError` for a global batch that the devices, or the microbatches, cannot share."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"data.batch_size must be a whole number from 1, got {batch_size!r}")
    shards = batch_shards(mesh)
    if batch_size % (shards * accumulate):
        raise ConfigError(
            f"data.batch_size {batch_size} does not divide over {shards} devices (data x fsdp)"
            + (f" x {accumulate} microbatches" if accumulate > 1 else "")
            + f"; use a multiple of {shards * accumulate}"
        )


def _default_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Output features over "tensor", the largest other axis that divides over "fsdp".

    The kernel of a convolution (rank 4) is sharded on its output features only, over both: with input and output features
    sharded apart and the batch over "data" as well, XLA (jax 0.10) computes wrong gradients.
    """
    if math.prod(shape) < _SMALL:
        return P()
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    spec: list[Any] = [None] * len(shape)
    if tensor > 1 and shape[-1] % tensor == 0:
        spec[-1] = "tensor"
        if len(shape) >= 4:
            return P(*spec[:-1], ("tensor", "fsdp") if fsdp > 1 and shape[-1] % (tensor * fsdp) == 0 else "tensor")
    free = [i for i, size in enumerate(shape) if spec[i] is None and size % fsdp == 0]
    if fsdp > 1 and free:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return P(*spec)


def path_name(path: tuple[Any, ...]) -> str:
    """Write a leaf's path as "params/network/down0_0_res/conv_in/kernel"."""
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def state_shardings(mesh: Mesh, abstract: Any, rules: Any = ()) -> Any:
    """Choose a sharding for every leaf of an abstract state.

    Args:
      rules: pairs (regular expression searched in the leaf's path, list with an axis name, a list of them or None for
        each dimension); the first that matches wins, others follow the default. Optimiser moments and averages have
        their parameter's path at the end.

    Raises:
      ConfigError: a rule that names an unknown axis, or does not fit the leaf.
    """
    compiled, used = [_compile(rule) for rule in rules], set()

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for number, (pattern, spec) in enumerate(compiled):
            if not pattern.search(name):
                continue
            used.add(number)
            problem = _misfit(mesh, spec, leaf.shape)
            if not problem:
                return NamedSharding(mesh, P(*spec))
            if name.startswith("params/"):  # factored moments have other shapes, and may follow the default
                raise ConfigError(f"mesh.rules: {pattern.pattern!r} on {name} {leaf.shape}: {problem}")
        return NamedSharding(mesh, _default_spec(leaf.shape, mesh))

    shardings = jax.tree_util.tree_map_with_path(sharding, abstract)
    for number, (pattern, _) in enumerate(compiled):
        if number not in used:
            names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(abstract)[0]]
            raise ConfigError(f"mesh.rules: {pattern.pattern!r} matches nothing; paths look like {names[len(names) // 8]!r}")
    return shardings


def _compile(rule: Any) -> tuple[re.Pattern[str], tuple[Any, ...]]:
    try:
        pattern, spec = rule
        return re.compile(pattern), tuple(tuple(axes) if isinstance(axes, list) else axes for axes in spec)
    except (re.error, TypeError, ValueError) as error:
        raise ConfigError(
            f"mesh.rules: {rule!r} is no pair of a regular expression and a list of axes, such as "
            f"['qkv/kernel', [None, 'tensor']] ({error})"
        ) from error


def _misfit(mesh: Mesh, spec: tuple[Any, ...], shape: tuple[int, ...]) -> str:
    """What is wrong with a spec for a shape; empty if nothing is."""
    if len(spec) > len(shape):
        return f"{len(spec)} axes for {len(shape)} dimensions"
    for axes, size in zip(spec, shape, strict=False):
        axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
        for axis in axes:
            check_choice("mesh.rules: axis (or None)", axis, AXES)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            return f"{size} does not divide over {' x '.join(axes)} of {parts} devices"
    return ""


def summary(target: Any) -> dict[str, int]:
    """Count the parameters of each sharding, largest first."""
    counts: dict[str, int] = {}
    for leaf in jax.tree.leaves(target):
        axes = tuple(leaf.sharding.spec)
        while axes and axes[-1] is None:
            axes = axes[:-1]
        name = str(list(axes)) if axes else "whole on every device"
        counts[name] = counts.get(name, 0) + math.prod(leaf.shape)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def put_batch(batch: Mapping[str, Any], sharding: NamedSharding, batch_size: int | None = None) -> dict[str, jax.Array]:
    """Place this host's rows as part of the global batch, of which captions stay behind.

    Args:
      batch_size: of the global batch; where it is not given, this host's rows times the number of processes.
    """

    def put(rows: np.ndarray) -> jax.Array:
        shape = None if batch_size is None else (batch_size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(put, numeric(batch))
