"""What a source is: random access to examples of numpy arrays."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diffusion_jax.errors import DataError

Example = dict[str, Any]
"""{"image": uint8 [h, w, c], and where the source has them "label": int, "caption": str, "mask": uint8 [h, w, 1] (255
where something is, and is to be filled), "text": floating [L, D], "text_mask": bool [L], "text_pooled": floating [D']}."""

SPLITS = ("train", "test")


class Source(Protocol):
    """Gives random access to examples; picklable, the same example for the same index on every host."""

    name: str
    num_classes: int
    """0 where there are no classes."""
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Identified(Protocol):
    """A source that can say what its examples are without reading them, so that others in their place are noticed."""

    def identity(self) -> dict[str, Any]:
        """Return JSON data that change with the examples; the same for all splits of the same data."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Holds images and labels in memory.

    Args:
      images: uint8 [n, h, w, c].
      labels: integers [n] in 0..num_classes-1, or None.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            got = f"{self.images.dtype} {self.images.shape}"
            raise DataError(f"the source {self.name!r} needs images uint8 [n, h, w, c] in 0 to 255, got {got}")
        if self.labels is not None and len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(f"the source {self.name!r} has labels from {low} to {high}, but {self.num_classes} classes")

    @property
    def num_classes(self) -> int:
        return len(self.class_names) if self.labels is not None else 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        example: Example = {"image": self.images[index]}
        if self.labels is not None:
            example["label"] = int(self.labels[index])
        return example


def stratified_split(labels: np.ndarray, held_out: int, split: str, seed: int = 0) -> np.ndarray:
    """Return the indices of a fixed split with `held_out` test examples, as many of each class as its share; sorted."""
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    test: list[np.ndarray] = []
    for number, label in enumerate(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        remaining = held_out - sum(map(len, test))
        test.append(members[: round(remaining / (len(classes) - number))])
    held = np.sort(np.concatenate(test))
    return held if split == "test" else np.setdiff1d(np.arange(len(labels)), held)
