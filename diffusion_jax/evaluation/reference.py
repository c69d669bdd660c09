"""The real side of an evaluation: statistics from a file or of a run's own data, and real features for those who need them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from diffusion_jax import __version__, data, identity, processes
from diffusion_jax.data.record import brief, described, differences
from diffusion_jax.errors import DataError
from diffusion_jax.features.extractor import BATCH, Extractor, features_of, limited, one_ahead, own_turns
from diffusion_jax.metrics.frechet import Gaussian, Moments, add_features, merge_processes, warn_if_few
from diffusion_jax.metrics.statistics_file import (
    Meta,
    Statistics,
    check_compatible,
    read_statistics,
    write_statistics,
)
from diffusion_jax.metrics.uncertainty import moments_of as moments_of_rows

_LOG = logging.getLogger(__name__)

_MOST_FEATURES = 50_000  # real rows that are kept for neighbours and kernels
_SUMMED = ("pool", "spatial")
_KEPT_IMAGES = 10_000  # in a file of statistics, as the ADM evaluator has them


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are held against.

    Attributes:
      statistics: means and covariances.
      extractor: the network of all features.
      images: () -> real images in order, batches uint8 [n, H, W, C]; None where there is only a file without images.
      held_out: the same of held-out images, or None.
      name: for reports.
    """

    statistics: Statistics
    extractor: Extractor
    images: Callable[[], Iterator[np.ndarray]] | None
    held_out: Callable[[], Iterator[np.ndarray]] | None
    name: str

    def gaussian(self, output: str = "pool") -> Gaussian:
        """Mean and covariance of the output "pool" or "spatial".

        Raises:
          DataError: the statistics do not have it.
        """
        found = self.statistics.gaussian if output == "pool" else self.statistics.spatial_gaussian
        if found is None:
            raise DataError(
                f"{self.name} has no statistics of spatial features (mu_s, sigma_s): make it anew with "
                "python -m diffusion_jax.reference_stats, or leave the metric sfid out"
            )
        return found

    @functools.cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Of real images, float32 [N, D] by output.

        Raises:
          DataError: only statistics are known.
        """
        if self.images is None:
            raise DataError(
                f"{self.name} holds no images, which KID, precision and recall, and neighbours need: give a run's --workdir, "
                "or make statistics with images (python -m diffusion_jax.reference_stats --images)"
            )
        return features_of(self.extractor, self.images(), limit=_MOST_FEATURES)

    @functools.cached_property
    def held_out_features(self) -> dict[str, np.ndarray] | None:
        """Of held-out images: what perfect samples would be like."""
        return None if self.held_out is None else features_of(self.extractor, self.held_out(), limit=_MOST_FEATURES)

    def warn_if_few(self, num: int) -> None:
        """Log where the real side is too small for the distance of `num` samples to say much."""
        warn_if_few(self.gaussian(), f"the Frechet distance to {self.name}, a reference")
        held_out = None if self.held_out_features is None else len(self.held_out_features["pool"])
        if held_out is not None and held_out < num:
            _LOG.warning(
                "The distance of held-out images is that of %d images, and the samples' that of %d: the fewer, the larger. "
                "Rank one against the other with --num=%d, or with more images held out.", held_out, num, held_out,
            )  # fmt: skip


def from_file(path: str, extractor: Extractor, held_out: data.Pipeline | None = None) -> Reference:
    """Return the reference of a statistics file.

    Args:
      held_out: of a run's data; where the file was made from a source of the same kind that differs from them, that is logged.

    Raises:
      DataError: a damaged file, or one of another network, preprocessing or checksum.
    """
    statistics = read_statistics(path, entry="fd_dinov2" if extractor.name.startswith("dinov2") else "fid")
    check_compatible(statistics, extractor.identity(), path)
    made_of = statistics.meta and statistics.meta.data
    if made_of and held_out is not None and made_of.get("source") == held_out.source.name:
        changed = differences(made_of, described(held_out.source, "test"))
        if changed:
            _LOG.warning("%s was made from other data than the run's: %s.", path, "; ".join(changed))
    kept = statistics.images
    images = None if kept is None else lambda: (kept[start : start + BATCH] for start in range(0, len(kept), BATCH))
    return Reference(statistics, extractor, images, None, str(path))


def from_data(source: data.Data, extractor: Extractor, folder: str | Path | None = None) -> Reference:
    """Return the reference of a run's training images, its statistics kept in a folder so that they are computed once.

    Args:
      source: the run's data; the split "test" is held out.
      folder: where statistics are kept; None keeps none.

    Raises:
      DataError: the statistics that are kept were made from other data; the difference is shown.
    """
    train, held_out = source.pipeline("train"), source.pipeline("test")
    made_of = {"data": identity.of_data(source.config), "extractor": extractor.identity(), "version": 1}
    path = Path(folder) / f"{identity.digest(made_of, 12)}.npz" if folder is not None else None
    statistics, features = _kept(path, extractor), None
    if statistics is not None and statistics.meta is not None and statistics.meta.data is not None:
        changed = differences(statistics.meta.data, described(train.source))
        if changed:
            raise DataError(
                f"the reference statistics kept in {path} were made from other data: {'; '.join(changed)}; restore them, or "
                "remove the file to compute it anew"
            )
    if statistics is None:
        if len(train) <= _MOST_FEATURES:  # one pass for both
            features = features_of(extractor, images_of(train))
        statistics = statistics_of(train, extractor, "train", features=features)
        _keep(path, statistics)
    name = f"{len(train)} training images of {train.source.name}"
    found = Reference(statistics, extractor, lambda: images_of(train), lambda: images_of(held_out), name)
    if features is not None:
        found.__dict__["features"] = features
    return found


def _kept(path: Path | None, extractor: Extractor) -> Statistics | None:
    if path is None or not processes.agreed(path.exists()):
        return None
    try:
        statistics = read_statistics(path)
        check_compatible(statistics, extractor.identity(), path)
    except DataError as error:
        _LOG.warning("%s; computing it again.", error)
        return None
    return statistics


def _keep(path: Path | None, statistics: Statistics) -> None:
    if path is None or not processes.is_first():
        return
    try:
        write_statistics(path, statistics)
    except DataError as error:
        _LOG.warning("Reference statistics are not kept: %s", error)


def images_of(pipeline: data.Pipeline, limit: int | None = None) -> Iterator[np.ndarray]:
    """The images of a pipeline in order, batches uint8 [n, H, W, C]."""
    return (batch["image"] for batch in pipeline.one_pass(BATCH, limit))


def moments_of(extractor: Extractor, batches: Iterable[np.ndarray], limit: int | None = None) -> dict[str, Moments]:
    """Moments in one pass, of the outputs "pool" and, where the network has it, "spatial"; the images are not kept.

    Where there are several processes each takes its turn of the batches, and all get the moments of all.

    Args:
      batches: uint8 [n, H, W, C], the same on every process.
      limit: stop after this many images.
    """
    moments = {name: Moments() for name in _SUMMED if name in extractor.dims}
    for outputs in one_ahead(map(extractor, own_turns(limited(batches, limit)))):
        for name, sums in moments.items():
            add_features(sums, outputs[name])
    return {name: merge_processes(sums) for name, sums in moments.items()}


def statistics_of(
    pipeline: data.Pipeline, extractor: Extractor, split: str, *, limit: int | None = None, images: bool = False,
    features: Mapping[str, np.ndarray] | None = None,
) -> Statistics:  # fmt: skip
    """Compute the statistics of a pipeline's images in order.

    Args:
      split: what to record as the images' split.
      limit: only the first images.
      images: keep the first 10,000 images in the statistics too.
      features: of these images by output, where they are known already.
    """
    moments = moments_of(extractor, images_of(pipeline, limit)) if features is None else {
        name: moments_of_rows(features[name], BATCH) for name in _SUMMED if name in features
    }  # fmt: skip
    meta = Meta(
        dataset=pipeline.source.name, split=split, count=moments["pool"].count,
        made_by=f"diffusion_jax {__version__}", data=brief(described(pipeline.source, split)), **extractor.identity(),
    )  # fmt: skip
    kept = np.concatenate(list(images_of(pipeline, min(limit or _KEPT_IMAGES, _KEPT_IMAGES)))) if images else None
    return Statistics.from_moments(moments["pool"], meta, spatial=moments.get("spatial"), images=kept)
