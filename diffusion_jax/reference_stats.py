"""Reference statistics of real images, for FID and its kin.

    python -m diffusion_jax.reference_stats --data=configs/mnist.py:base --out=stats.npz
    python -m diffusion_jax.reference_stats --data=IMAGES --features=inception --features_file=FILE --out=stats.npz

--data is a run's directory, a recipe (FILE.py:VARIANT, with --config.data.FIELD=VALUE to change it), a folder of images of
one size, or an npz of arr_0 uint8 [N, H, W, C]. A run's or recipe's images are cropped and resized as they are for training.

The file has mu and sigma, as pytorch-fid, TTUR and EDM read them; Inception's also mu_s and sigma_s of spatial features,
and --images adds the first 10,000 images as arr_0, as the ADM evaluator reads them. It records data set, split, count,
preprocessing, network and the checksum of its weights; diffusion_jax.evaluate refuses statistics of another network.

--out is a new file, or one of earlier statistics, which are replaced; any other file is left alone.

On several hosts (--distributed, or --coordinator and its kin, as in diffusion_jax.train) each takes its turn of the images.

Exit status: 0, or 2 after one line that says what is wrong.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax import __version__, data, processes, programs
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.evaluation.reference import moments_of, statistics_of
from diffusion_jax.features.classifier import classifier_of_data
from diffusion_jax.features.extractor import BATCH, Extractor
from diffusion_jax.features.networks import small
from diffusion_jax.files import user_path
from diffusion_jax.inference import command_line
from diffusion_jax.inference.run import Run
from diffusion_jax.inference.sample_sets import open_samples
from diffusion_jax.metrics.statistics_file import Meta, Statistics, write_statistics
from diffusion_jax.registry import build
from diffusion_jax.training import complete
from diffusion_jax.training.recipes import load_recipe

_LOG = logging.getLogger("diffusion_jax.reference_stats")


def define_flags() -> None:
    """Define the program's flags."""
    command_line.define_feature_flags()
    programs.define_process_flags()
    flags.DEFINE_string("data", None, "Run's directory, recipe, folder of images, or npz.")
    flags.DEFINE_string("out", None, "The file of statistics, .npz.")
    flags.DEFINE_enum("split", "train", ["train", "test"], "Of a run's or a recipe's data.")
    flags.DEFINE_integer("num", None, "Only the first so many images.", lower_bound=2)
    flags.DEFINE_bool("images", False, "Keep the first 10,000 images in the file, for precision and recall.")
    flags.DEFINE_integer("classifier_steps", 1000, "Training steps of the network small.", lower_bound=1)


def _data(source: str, overrides: Mapping[str, Any]) -> data.Data | None:
    """The data of a run or a recipe; None for images."""
    if (Path(source) / "config.json").exists():
        return Run(source, overrides).data
    if source.partition(":")[0].endswith(".py"):
        config = complete(load_recipe(source, overrides))
        return data.Data(config["data"], seed=config["seed"])
    if not Path(source).exists():
        raise DataError(f"--data={source}: there is no such run, recipe, folder or npz")
    if overrides:
        raise ConfigError(
            f"--data={source} is images, taken as they are: leave out {', '.join(f'--config.{x}' for x in overrides)}"
        )
    return None


def _of_images(source: str, extractor: Extractor, num: int | None, images: bool) -> Statistics:
    """Statistics of a folder or an npz."""
    samples = open_samples(source)
    moments = moments_of(extractor, samples.batches(BATCH, num))
    made_by = f"diffusion_jax {__version__}"
    meta = Meta(dataset=source, count=moments["pool"].count, made_by=made_by, **extractor.identity())
    kept = samples.head(min(num or 10_000, 10_000)) if images else None
    return Statistics.from_moments(moments["pool"], meta, spatial=moments.get("spatial"), images=kept)


def _check_out(out: Path) -> None:
    """Raise unless statistics may be written to a file: to a new one, or over earlier statistics."""
    if out.suffix != ".npz":
        raise ConfigError(f"--out={out}: statistics are a .npz file")
    if not out.exists():
        return
    try:
        with zipfile.ZipFile(out) as archive:
            statistics = {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        statistics = False
    if not statistics:
        raise DataError(f"--out={out} is there already, and holds no statistics: choose another file")


def _work(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    for flag in ("data", "out"):
        if not values[flag]:
            raise ConfigError(f"--{flag} is needed; see --help")
    out, features = user_path(values["out"]), command_line.features_of(values)
    values = {**values, "data": str(user_path(values["data"]))}
    processes.by_first(lambda: _check_out(out))
    source = _data(values["data"], overrides)
    if source is None and values["split"] != "train":
        raise ConfigError(f"--data={values['data']} is images, all of which are taken: leave out --split")
    if features != "small":
        extractor = build("features", features)
    elif source is not None:
        extractor = small(classifier_of_data(out.parent, source, steps=values["classifier_steps"]))
    else:
        raise ConfigError("--features=small is trained on a run's or a recipe's data: for images alone, name another network")
    _LOG.info("Computing statistics in features of %s; the first batch compiles.", extractor.name)
    if source is None:
        statistics = _of_images(values["data"], extractor, values["num"], values["images"])
    else:
        statistics = statistics_of(
            source.pipeline(values["split"]), extractor, values["split"], limit=values["num"], images=values["images"]
        )
    if processes.is_first():
        write_statistics(out, statistics)
    assert statistics.meta is not None
    _LOG.info("To evaluate with them: python -m diffusion_jax.evaluate --workdir=DIR --reference=%s", out)
    return f"{out}: {statistics.meta.count} images, {statistics.mean.size} features of {extractor.name}"


if __name__ == "__main__":
    command_line.run_program("reference_stats", define_flags, _work)
