"""Class labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import Pipeline
from diffusion_jax.errors import ConfigError, nearest
from diffusion_jax.registry import register
from diffusion_jax.systems.conditioners.base import Columns, Conditioner, DataOf, Flag
from diffusion_jax.systems.sampling import Sampling
from diffusion_jax.values import Count, Fraction


@register("conditioner", "labels")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels(Conditioner):
    """Classes 0 to num_classes - 1; num_classes itself is the null label.

    Batches and requests have "label" int [B]; a request may have "negative_label" too, which guidance leads away from instead
    of from no label.

    Args:
      num_classes: at least 1.
    """

    num_classes: Count
    drop: Fraction = 0.1

    name = "labels"
    keys = frozenset({"label"})
    columns = ("label", "negative_label")
    flags = (
        Flag("labels", "Classes: 'all', '0,1,2' or 'cat,dog' (in turn), or '10-per-class' (sorted); all if left out."),
        Flag("negative_labels", "Classes that guidance leads away from, instead of no class: '3', or 'cat,dog' (in turn)."),
    )

    @property
    def meaning(self) -> str:
        """Return the number of classes."""
        return f"{self.num_classes} classes"

    def network_fields(self) -> dict[str, Any]:
        """Return the size of the table of labels."""
        return {"num_classes": self.num_classes, "null_class": self.drop > 0}

    def request(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the labels of the batch."""
        return {"label": batch["label"]}

    def sampling(self, request: Mapping[str, Any], key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict[str, Any]:
        """Return the labels."""
        return {"label": jnp.asarray(request["label"], jnp.int32)}

    def null(self, cond: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the null label, or the request's negative ones."""
        avoided = (request or {}).get("negative_label", self.num_classes)
        return {"label": jnp.broadcast_to(jnp.asarray(avoided, jnp.int32), cond["label"].shape)}

    def default(self) -> Columns:
        """Return all classes in turn."""
        return {"label": np.arange(self.num_classes, dtype=np.int32)}

    def from_flags(self, given: Mapping[str, str], source: DataOf) -> tuple[Columns, int | None]:
        """Return the labels that the flags spell out."""
        columns: Columns = {}
        names = lambda: source.class_names  # noqa: E731
        num = None
        if "labels" in given:
            columns["label"], num = label_column(given["labels"], self.num_classes, names)
        if "negative_labels" in given:
            columns["negative_label"] = label_column(given["negative_labels"], self.num_classes, names)[0]
        return columns, num

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` unless there are labels, and in range; the values of traced ones pass unseen."""
        if "label" not in request:
            raise ConfigError(f"the model has {self.num_classes} classes: a request needs 'label' (has: {sorted(request)})")
        for name in self.columns:
            if name in request:
                check_labels(request[name], self.num_classes)

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` for a label out of range."""
        self.check_request(self.request(batch))

    def check_data(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` unless the data have as many classes."""
        if pipeline.num_classes != self.num_classes:
            raise ConfigError(f"the data have {pipeline.num_classes} classes, the system num_classes={self.num_classes}")


def check_labels(labels: Any, num_classes: int) -> None:
    """Raise a `ConfigError` that names the first label outside of 0..num_classes-1. Traced labels pass unseen."""
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    bad = np.flatnonzero((values < 0) | (values >= num_classes))
    if bad.size:
        raise ConfigError(
            f"label {values.flat[bad[0]]} is out of range: the model has {num_classes} classes, 0 to {num_classes - 1}"
        )


def label_column(text: str, num_classes: int, names: Callable[[], Sequence[str]] = tuple) -> tuple[np.ndarray, int | None]:
    """Return the labels of a specification, to be repeated in turn, and how many samples that makes, if it says so.

    Args:
      text: "all" goes round all classes; "3" or "0,1,2" goes round these, "cat,dog" round the classes of these names (a number
        is a label, whatever classes are named); "10-per-class" is ten of class 0, then ten of class 1, and so on.
      names: () -> the names of the classes by label; asked for where the text has any.

    Raises:
      ConfigError: labels out of range, unknown names, or a specification that cannot be read.

    >>> label_column("4,7", 10)[0].tolist()
    [4, 7]
    >>> label_column("dog, cat", 2, lambda: ("cat", "dog"))[0].tolist()
    [1, 0]
    >>> column, num = label_column("2-per-class", 3)
    >>> column.tolist(), num
    ([0, 0, 1, 1, 2, 2], 6)
    """
    text = text.strip()
    every = np.arange(num_classes, dtype=np.int32)
    if text == "all":
        return every, None
    if match := re.fullmatch(r"(\d+)\s*-\s*per\s*-\s*class", text):
        if not int(match[1]):
            raise ConfigError("labels: '0-per-class' asks for nothing")
        return every.repeat(int(match[1])), int(match[1]) * num_classes
    labels = np.array([_label(part.strip(), text, names) for part in text.split(",")], np.int64)
    check_labels(labels, num_classes)
    return labels.astype(np.int32), None


def _label(part: str, text: str, names: Callable[[], Sequence[str]]) -> int:
    """The label that a number or the name of a class stands for."""
    if re.fullmatch(r"-?\d{1,9}", part):
        return int(part)
    known = list(names()) if part else []
    if part in known:
        return known.index(part)
    if not known:
        raise ConfigError(f"cannot read labels {text!r}: write 'all', '0,1,2', '10-per-class', or names that the classes have")
    some = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    raise ConfigError(f"unknown class {part!r}{nearest(part, known)} (the run's classes: {some}; or their numbers from 0)")
