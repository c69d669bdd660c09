"""Any prepared TensorFlow Datasets builder, read at random without TensorFlow."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import numpy as np

from diffusion_jax.data.sources.base import Example
from diffusion_jax.errors import DataError, nearest
from diffusion_jax.files import reason, user_path
from diffusion_jax.registry import register


@register("source", "tfds")
@dataclasses.dataclass(frozen=True, eq=False)
class Tfds:
    """Reads a builder that was prepared in a random-access file format (array_record).

    Args:
      dataset: its name, such as "cifar10" or "my_dataset/config:1.0.0".
      split: in the builder's own words, such as "train" or "train[:90%]". Held-out data are the split "test" unless the
        source's configuration has a `test_split`.
      data_dir: where it was prepared; the usual place by default.
      image_key, label_key, caption_key: names of features; None leaves one out.

    Raises:
      DataError: the packages are missing, the builder is unknown or not prepared in a random-access format, or a
        feature does not exist.
    """

    dataset: str
    split: str = "train"
    data_dir: str | None = None
    image_key: str = "image"
    label_key: str | None = "label"
    caption_key: str | None = None

    @property
    def name(self) -> str:
        return f"tfds:{self.dataset}"

    def __post_init__(self) -> None:
        for package in ("tensorflow_datasets", "array_record"):
            if importlib.util.find_spec(package) is None:
                raise DataError(f"the source 'tfds' needs the package {package}: pip install 'diffusion_jax[tfds]'")
        builder = _prepared(self.dataset, self.data_dir)
        known = list(builder.info.features)
        for field in ("image_key", "label_key", "caption_key"):
            key = getattr(self, field)
            if key is not None and key not in known:
                raise DataError(
                    f"{self.dataset} has no feature {key!r}{nearest(key, known)} (its features: {', '.join(known)}); set "
                    f"{field} of the source{'' if field == 'image_key' else ', or None'}"
                )
        try:
            source = builder.as_data_source(split=self.split)
        except (ValueError, KeyError, NotImplementedError) as error:
            splits = ", ".join(builder.info.splits)
            raise DataError(
                f"the split {self.split!r} of {self.dataset} cannot be read (it has: {splits}): {reason(error)}"
            ) from error
        label = builder.info.features[self.label_key] if self.label_key else None
        object.__setattr__(self, "_source", source)
        object.__setattr__(self, "_builder", {
            "builder": builder.info.full_name, "version": str(builder.info.version),
            "splits": {name: found.num_examples for name, found in builder.info.splits.items()},
        })  # fmt: skip
        object.__setattr__(self, "num_classes", getattr(label, "num_classes", None) or 0)
        object.__setattr__(self, "class_names", tuple(getattr(label, "names", None) or ()))

    def identity(self) -> dict[str, Any]:
        """Return the builder, its version, and how many examples each of its splits has."""
        return dict(self._builder)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        found: dict[str, Any] = self._source[int(index)]
        image = np.asarray(found[self.image_key])
        if image.dtype != np.uint8:
            raise DataError(f"{self.dataset}: the feature {self.image_key!r} is {image.dtype}, not uint8 images")
        example: Example = {"image": image if image.ndim == 3 else image[..., None]}
        if self.label_key and self.num_classes:
            example["label"] = int(found[self.label_key])
        if self.caption_key:
            caption = found[self.caption_key]
            example["caption"] = caption.decode() if isinstance(caption, bytes) else str(caption)
        return example


def _prepared(dataset: str, data_dir: str | None) -> Any:
    """The builder, if it is known and prepared for random access."""
    import tensorflow_datasets as tfds

    try:
        # From the prepared files alone: the code that made them need not be importable.
        builder = tfds.builder(dataset, data_dir=data_dir and str(user_path(data_dir)), try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise DataError(
            f"no builder {dataset!r} in {data_dir or 'the usual data directory'}: check the name and set data_dir to where "
            f"it was prepared ({str(error).splitlines()[0]})"
        ) from error
    file_format = getattr(builder.info.file_format, "value", None)
    if not builder.info.splits:
        raise DataError(
            f"{dataset} is not prepared in {builder.data_dir}: prepare it once with "
            f"tfds.builder({dataset!r}, file_format='array_record').download_and_prepare()"
        )
    if file_format != "array_record":
        raise DataError(
            f"{dataset} was prepared as {file_format}, which has no random access: prepare it again with "
            f"tfds.builder({dataset!r}, file_format='array_record').download_and_prepare()"
        )
    return builder
