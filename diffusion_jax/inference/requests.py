"""What to ask a sampler for: labels by rule, and low-resolution images from data, by sample index."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data.embeddings import PARTS
from diffusion_jax.data.sources.folder import image_files
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.inference.cascade import Cascade
from diffusion_jax.systems import Diffusion, labels, to_uint8

LabelRule = Callable[[np.ndarray], np.ndarray]
"""Sample indices int [N] -> labels int32 [N]."""


def label_rule(spec: str, num_classes: int) -> tuple[LabelRule, int | None]:
    """Labels from their specification, and how many samples it asks for, if it says so.

    Args:
      spec: "all" goes round all classes; "3" or "0,1,2" goes round these; "10-per-class" is ten of class 0, then ten
        of class 1, and so on.

    Raises:
      ConfigError: labels out of range, of a model without classes, or a specification that cannot be read.

    >>> label_rule("4,7", 10)[0](np.arange(3)).tolist()
    [4, 7, 4]
    >>> rule, num = label_rule("2-per-class", 3)
    >>> rule(np.arange(num)).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    if not num_classes:
        raise ConfigError(f"labels {spec!r} of an unconditional model: leave --labels out")
    text = spec.replace(" ", "")
    if text == "all":
        return lambda indices: (indices % num_classes).astype(np.int32), None
    if match := re.fullmatch(r"(\d+)-per-class", text):
        each = int(match[1])
        if not each:
            raise ConfigError("labels: '0-per-class' asks for nothing")
        return lambda indices: (indices // each % num_classes).astype(np.int32), each * num_classes
    if not re.fullmatch(r"-?\d+(,-?\d+)*", text):
        raise ConfigError(f"cannot read labels {spec!r}: write 'all', '0,1,2' or '10-per-class'")
    cycle = np.array([int(part) for part in text.split(",")], np.int64)
    labels.check(cycle, num_classes)
    return lambda indices: cycle[indices % len(cycle)].astype(np.int32), None


def requests_of(system: Diffusion, pipeline: data.Pipeline, num: int) -> dict[str, np.ndarray]:
    """What the first `num` images of a pipeline would be asked for by, and their labels where there are any.

    Low-resolution images are kept as bytes.
    """

    @jax.jit
    def ask(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        asked = {name: batch[name] for name in ("label",) if name in batch} | dict(system.request(batch))
        return {name: to_uint8(value) if name == "low_res" else value for name, value in asked.items()}

    parts = []
    for batch in pipeline.one_pass(256, limit=num):
        numeric = {name: np.asarray(value) for name, value in batch.items() if np.asarray(value).dtype != object}
        parts.append(jax.tree.map(np.asarray, ask(numeric)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def texts_from(path: str) -> dict[str, np.ndarray]:
    """A user's texts: an npz of tokens [N, L, D], mask [N, L] and perhaps pooled [N, D'], one text for each image.

    Raises:
      DataError: nothing there, or no texts in it.
    """
    try:
        with np.load(path) as arrays:
            found = {name: arrays[part] for part, name in PARTS.items() if part in arrays}
            shapes = found["text"].shape, found["text_mask"].shape
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {path}: an npz with tokens [N, L, D] and mask [N, L] is needed ({error})") from error
    if len(shapes[0]) != 3 or shapes[1] != shapes[0][:2] or not shapes[0][0]:
        raise DataError(f"{path}: tokens {shapes[0]} and mask {shapes[1]} should be [N, L, D] and [N, L]")
    return {**found, "text_mask": found["text_mask"].astype(bool)}


def low_res_from(path: str, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """A user's low-resolution images: a folder of image files, or an npz of arr_0 uint8 [N, h, w, C] and arr_1 labels.

    Args:
      shape: (h, w, C) of the images that the model takes; files of a folder are cropped and reduced to it.

    Raises:
      DataError: nothing there, of another shape, or an image that is already smaller.
    """
    if not Path(path).exists():
        raise DataError(f"no low-resolution images at {path}: it does not exist")
    if Path(path).is_dir():
        source = {"name": "folder", "path": path, "test_fraction": 0.0}
        for name in image_files(Path(path)):
            with Image.open(name) as image:
                if min(image.size) < shape[0]:
                    raise DataError(
                        f"{name} has {image.width}x{image.height} pixels, fewer than the low-resolution size "
                        f"{shape[1]}x{shape[0]} that the model takes: enlarge it, or leave it out"
                    )
        pipeline = data.from_config({"source": source, "image_size": shape[0], "channels": shape[2], "batch_size": 1})
        batches = list(pipeline.one_pass(256))
        return {
            {"image": "low_res"}.get(name, name): np.concatenate([batch[name] for batch in batches])
            for name in batches[0]
            if name == "image" or (name == "label" and pipeline.num_classes)
        }
    try:
        with np.load(path) as arrays:
            columns = {"low_res": arrays["arr_0"]} | ({"label": arrays["arr_1"]} if "arr_1" in arrays else {})
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {path}: an npz with arr_0 uint8 [N, h, w, C] is needed ({error})") from error
    images = columns["low_res"]
    if images.dtype != np.uint8 or images.shape[1:] != tuple(shape) or not len(images):
        raise DataError(
            f"{path}: arr_0 is {images.dtype} {images.shape}, the model takes uint8 [N, {', '.join(map(str, shape))}]"
        )
    return columns


@dataclasses.dataclass(frozen=True)
class Requests:
    """Conditioning by sample index.

    Attributes:
      columns: arrays by name, [M, ...] each; they repeat past their end.
      rule: of the labels; it goes before a label column.
    """

    columns: dict[str, np.ndarray]
    rule: LabelRule | None = None

    def __call__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The conditioning of samples int [N], [N, ...] each."""
        found = {name: column[indices % len(column)] for name, column in self.columns.items()}
        return found if self.rule is None else {**found, "label": self.rule(indices)}

    def labels(self, num: int) -> np.ndarray | None:
        """Of the first `num` samples, int [num]; None without labels."""
        wanted = {name: column for name, column in self.columns.items() if name == "label"}
        return Requests(wanted, self.rule)(np.arange(num)).get("label")

    def check(self, cascade: Cascade, num: int) -> None:
        """Raise a `ConfigError` if the cascade does not take this conditioning for its first `num` samples."""
        cascade.check_request(self(np.arange(1)))
        given = self.labels(num)
        if given is not None and cascade.num_classes:
            labels.check(given, cascade.num_classes)
