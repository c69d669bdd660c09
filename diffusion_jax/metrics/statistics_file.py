"""Files of reference statistics: means and covariances in the published layouts, and what they were made from."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import hashlib
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import DataError
from diffusion_jax.files import reason, replacing, user_path
from diffusion_jax.metrics.frechet import Gaussian, Moments
from diffusion_jax.npz import MOST_BYTES, read_npz

_LOG = logging.getLogger(__name__)

_FORMAT = 1
_META = {"count": int | None, "data": dict | None}  # the kinds of the fields of `Meta` that are no texts
_IDENTITY = ("network", "preprocessing", "checksum")
_ROUNDING = 1e-6  # of a covariance, relative to its largest entry: some files hold float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What a statistics file was made from; an empty field is not known.

    Args:
      dataset: such as "cifar10".
      split: such as "train".
      count: images.
      preprocessing: how they were resized and scaled, in the words of the extractor.
      network: the extractor's name.
      checksum: sha256 of the network's weights.
      made_by: the program and its version.
      data: what the images were, as `data.record.brief` describes them.
    """

    dataset: str = ""
    split: str = ""
    count: int | None = None
    preprocessing: str = ""
    network: str = ""
    checksum: str = ""
    made_by: str = ""
    data: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Reference statistics.

    Attributes:
      mean, covariance: float64 [D] and [D, D] of the features.
      spatial_mean, spatial_covariance: the same of the spatial features of sFID, or None.
      images: uint8 [N, H, W, C] for precision and recall, or None.
      meta: None for a file of another tool, which does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    spatial_mean: np.ndarray | None = None
    spatial_covariance: np.ndarray | None = None
    images: np.ndarray | None = None
    meta: Meta | None = None

    @classmethod
    def from_moments(
        cls, moments: Moments, meta: Meta, *, spatial: Moments | None = None, images: np.ndarray | None = None
    ) -> Statistics:
        """Of moments, whose number of samples replaces the count of `meta`."""
        return cls(
            mean=moments.mean,
            covariance=moments.covariance,
            spatial_mean=None if spatial is None else spatial.mean,
            spatial_covariance=None if spatial is None else spatial.covariance,
            images=images,
            meta=dataclasses.replace(meta, count=moments.count),
        )

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """For `frechet_distance`; one object, whose root is computed once for all checkpoints."""
        return Gaussian(self.mean, self.covariance, self.meta.count if self.meta else None)

    @functools.cached_property
    def spatial_gaussian(self) -> Gaussian | None:
        """For sFID, where the file has it."""
        if self.spatial_mean is None or self.spatial_covariance is None:
            return None
        return Gaussian(self.spatial_mean, self.spatial_covariance, self.meta.count if self.meta else None)


_NAMES = {
    "mu": "mean", "sigma": "covariance", "mu_s": "spatial_mean", "sigma_s": "spatial_covariance", "arr_0": "images",
}  # fmt: skip


def write_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write a .npz that pytorch-fid, TTUR, EDM and (with spatial statistics) the ADM evaluator read; whole or not at all.

    Beside their entries it holds "meta", JSON text, with a checksum of each array.

    Raises:
      DataError: NaN or shapes that do not fit together, another ending than .npz, or a path that cannot be written.
    """
    path = user_path(path)
    if path.suffix != ".npz":
        raise DataError(f"statistics are written as .npz, not as {path.name}")
    _check(statistics, path)
    arrays = {name: getattr(statistics, field) for name, field in _NAMES.items() if getattr(statistics, field) is not None}
    arrays = {name: np.asarray(array, None if name == "arr_0" else np.float64) for name, array in arrays.items()}
    described = {"format": _FORMAT, **dataclasses.asdict(statistics.meta or Meta())}
    described["arrays_sha256"] = {name: _digest(array) for name, array in arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, meta=np.array(json.dumps(described)))
    except OSError as error:
        raise DataError(f"cannot write statistics to {path}: {error.strerror or error}") from error


def read_statistics(path: str | Path, *, images: bool = True, entry: str = "fid") -> Statistics:
    """Read statistics, of ours or of another tool, and check them.

    Layouts: .npz with mu and sigma (TTUR, pytorch-fid, EDM), with mu_s, sigma_s and arr_0 besides (ADM), and .pkl with
    a dictionary of them for each metric (EDM2), from which nothing but arrays and plain values is loaded.

    Args:
      images: also read the images, where there are any.
      entry: which statistics of a .pkl, such as "fid" or "fd_dinov2".

    Raises:
      DataError: a file that is missing, truncated, empty, of another layout or changed since it was written; NaN, or
        shapes that do not fit together.
    """
    path = user_path(path)
    if not path.exists():
        raise DataError(f"there is no statistics file {path}; make one with python -m diffusion_jax.reference_stats")
    known = {*_NAMES, "meta"} - (set() if images else {"arr_0"})
    arrays = load_entry(path, entry) if path.suffix == ".pkl" else read_npz(path, "statistics", wanted=known.__contains__)
    text = arrays.pop("meta", None)
    missing = sorted({"mu", "sigma"} - set(arrays))
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path} is no file of statistics: it has no {' and no '.join(missing)}, but {found}")
    meta = None if text is None else _described(text, arrays, images, path)
    try:
        typed = {name: np.asarray(array, None if name == "arr_0" else np.float64) for name, array in arrays.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: an entry holds no numbers ({error})") from error
    statistics = Statistics(**{field: typed.get(name) for name, field in _NAMES.items()}, meta=meta)
    _check(statistics, path)
    return statistics


def check_compatible(statistics: Statistics, extractor: Mapping[str, str], where: str | Path = "the statistics file") -> None:
    """Refuse statistics that another network, other weights or another preprocessing made.

    A file of another tool does not say what made it: that is logged, since only its width can be checked.

    Args:
      extractor: the features that it will be compared with: "network", "preprocessing" and "checksum", and optionally
        "width", of their features; what either side leaves empty is not compared.
      where: the file, for messages.

    Raises:
      DataError: they do not agree; both sides are named.
    """
    width = extractor.get("width")
    if width and int(width) != len(statistics.mean):
        raise DataError(
            f"{where} holds {len(statistics.mean)} features, but {extractor.get('network', 'the network')} has {width}: "
            "use statistics of the same network"
        )
    if statistics.meta is None:
        _LOG.warning(
            "%s does not say which network and preprocessing made it: make sure that they were %s, or write your own with "
            "python -m diffusion_jax.reference_stats.", where, _listed(extractor),
        )  # fmt: skip
        return
    made = dataclasses.asdict(statistics.meta)
    names = [name for name in _IDENTITY if made[name] and extractor.get(name) and made[name] != extractor[name]]
    if names:
        raise DataError(
            f"{where} was made with {_listed(made)}, but these features are of {_listed(extractor)}: they differ in "
            f"{' and '.join(names)}; use the same features, or make statistics of these"
        )


def _listed(identity: Mapping[str, Any]) -> str:
    named = {name: str(identity.get(name) or "not known") for name in _IDENTITY}
    named["checksum"] = named["checksum"][:12]
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _described(text: np.ndarray, arrays: Mapping[str, np.ndarray], images: bool, path: Path) -> Meta:
    """What a file of ours says of itself, its arrays compared with their checksums."""
    try:
        described = json.loads(str(text))
        sums = dict(described["arrays_sha256"])
        given = {"data": None, **described}  # which files of release 0.1.0 do not have
        meta = Meta(**{field.name: given[field.name] for field in dataclasses.fields(Meta)})
        for name, value in dataclasses.asdict(meta).items():
            if not isinstance(value, _META.get(name, str)):
                raise ValueError(f"{name} is {value!r}")
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the entry 'meta' is not what this library writes ({error!r})") from error
    wanted = {name for name in sums if images or name != "arr_0"}
    wrong = [name for name in sorted(wanted | set(arrays)) if name not in arrays or sums.get(name) != _digest(arrays[name])]
    if wrong:
        raise DataError(f"{path}: {', '.join(wrong)} changed since the file was written (wrong checksum); make it again")
    return meta


def _digest(array: np.ndarray) -> str:
    """sha256 of an array's type, shape and numbers."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _check(statistics: Statistics, path: Path) -> None:
    pairs = {"": (statistics.mean, statistics.covariance)}
    if (statistics.spatial_mean is None) != (statistics.spatial_covariance is None):
        raise DataError(f"{path} has only one of mu_s and sigma_s: sFID needs both")
    if statistics.spatial_mean is not None:
        pairs["_s"] = (statistics.spatial_mean, statistics.spatial_covariance)
    for suffix, (mean, covariance) in pairs.items():
        mean, covariance = np.asarray(mean), np.asarray(covariance)
        if mean.ndim != 1 or not mean.size or covariance.shape != mean.shape * 2:
            raise DataError(f"{path}: mu{suffix} {mean.shape} and sigma{suffix} {covariance.shape} are not [D] and [D, D]")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise DataError(f"{path}: mu{suffix} or sigma{suffix} has NaN or infinite entries; make it again")
        largest = np.abs(covariance).max()
        if np.abs(covariance - covariance.T).max() > _ROUNDING * largest or covariance.diagonal().min() < -_ROUNDING * largest:
            raise DataError(f"{path}: sigma{suffix} is no covariance: it must be symmetric, without negative variances")
    images = statistics.images
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or not images.size):
        raise DataError(f"{path}: arr_0 must be images, uint8 [N, H, W, C], got {images.dtype} {images.shape}")


class _Array:
    """Stands for numpy.ndarray, so that a pickle cannot ask for arrays of any size."""


def _empty(*_: Any) -> np.ndarray:
    """What numpy's own pickles of arrays begin with; its state, shape and bytes, follows, and numpy compares the two."""
    return np.empty(0, np.uint8)


def _dtype(kind: str, *_: Any) -> np.dtype:
    if np.dtype(kind).kind not in "fiub":
        raise pickle.UnpicklingError(f"an array of type {kind}, which is no number")
    return np.dtype(kind, copy=True)


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays of numbers and plain containers; every other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("numpy.core.", "numpy._core.")) and name in ("_reconstruct", "_frombuffer"):
            return _empty if name == "_reconstruct" else np._core.numeric._frombuffer
        allowed = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _dtype, ("_codecs", "encode"): codecs.encode}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}, and only arrays are allowed")
        return allowed[module, name]


def load_entry(path: Path, entry: str) -> dict[str, np.ndarray]:
    """The arrays of one entry of a dictionary of dictionaries, such as {"fid": {"mu": ..., "sigma": ...}}.

    Raises:
      DataError: no such entry, anything but arrays of numbers and plain values in the file, or a damaged file.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        with open(path, "rb") as file:
            found = _ArraysOnly(file).load()
    except Exception as error:  # damaged pickles fail in many ways
        raise DataError(f"{path} cannot be read as statistics: {reason(error)}") from error
    if not isinstance(found, dict) or not isinstance(found.get(entry), dict):
        entries = ", ".join(sorted(map(str, found))) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{path} has no statistics {entry!r} (it has: {entries})")
    return {name: value for name, value in found[entry].items() if isinstance(value, np.ndarray)}
