"""Texts beside images: embeddings made beforehand, and captions as one-hot words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.sources.base import Example, Identified
from diffusion_jax.errors import ConfigError, DataError, nearest
from diffusion_jax.files import reason, user_path
from diffusion_jax.npz import read_npz
from diffusion_jax.registry import build, register
from diffusion_jax.values import Count

PARTS = {"tokens": "text", "mask": "text_mask", "pooled": "text_pooled"}
"""Name in the file -> name in an example."""


class Embeddings(Mapping[str, dict[str, np.ndarray]]):
    """Maps file name -> {"text": [L, D], "text_mask": bool [L], and where there is one "text_pooled": [D']}.

    Args:
      path: an npz file with the arrays file_name [N] of strings, tokens [N, L, D] float16 or float32, mask [N, L], and
        perhaps pooled [N, D']; or a folder with one npy file for each (file_name.npy, tokens.npy, ...), which are read
        from disk as they are needed.

    Raises:
      DataError: nothing there, arrays missing or of lengths that differ, a file name twice.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = user_path(path)
        arrays = self._read()
        for name in ("file_name", "tokens", "mask"):
            if name not in arrays:
                raise DataError(f"{self._path}: the array {name!r} is missing (has: {', '.join(sorted(arrays)) or 'none'})")
        names = _names(self._path, arrays.pop("file_name"))
        self._arrays = {PARTS[name]: array for name, array in arrays.items() if name in PARTS}
        tokens, mask = self._arrays["text"], self._arrays["text_mask"]
        lengths = {name: len(array) for name, array in arrays.items() if name in PARTS}
        if set(lengths.values()) != {len(names)} or tokens.ndim != 3 or mask.shape != tokens.shape[:2]:
            shapes = {name: arrays[name].shape for name in lengths}
            raise DataError(
                f"{self._path}: needs tokens [N, L, D] and mask [N, L] for its {len(names)} file names, but has {shapes}"
            )
        if tokens.dtype.kind != "f":
            raise DataError(f"{self._path}: tokens must be float16 or float32, got {tokens.dtype}")
        self._rows = {name: row for row, name in enumerate(names)}
        if len(self._rows) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self._path}: the file name {twice!r} is there twice")

    def _read(self) -> dict[str, np.ndarray]:
        if not self._path.is_dir():
            return read_npz(self._path, "text embeddings (file_name, tokens, mask)")
        try:
            return {file.stem: np.load(file, mmap_mode="r") for file in sorted(self._path.glob("*.npy"))}
        except Exception as error:  # damaged files fail in many ways
            raise DataError(f"cannot read text embeddings from the npy files of {self._path} ({reason(error)})") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        row = self._rows[name]
        found = {key: np.array(array[row]) for key, array in self._arrays.items()}
        return {**found, "text_mask": found["text_mask"].astype(bool)}

    def check(self, names: Iterable[str]) -> None:
        """Raise a `DataError` that names the first image without an embedding."""
        missing = [name for name in names if name not in self._rows]
        if missing:
            hint = nearest(missing[0], self._rows)
            raise DataError(f"{self._path} has no embedding of {len(missing)} images, such as {missing[0]!r}{hint}")


def _names(path: Path, names: np.ndarray) -> list[str]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{path}: file_name must be texts [N], got {names.dtype} {names.shape}")
    return names.tolist()


def texts_from(path: str) -> dict[str, np.ndarray]:
    """Read a person's texts: an npz of tokens [N, L, D], mask [N, L] and perhaps pooled [N, D'], one text for each sample.

    Raises:
      DataError: nothing there, or no texts in it.
    """
    arrays = read_npz(user_path(path), "texts (tokens [N, L, D], mask [N, L])", wanted=PARTS.__contains__)
    found = {name: arrays[part] for part, name in PARTS.items() if part in arrays}
    if "text" not in found or "text_mask" not in found or found["text"].dtype.kind != "f":
        raise DataError(f"{path}: texts are floating tokens [N, L, D] and mask [N, L] (has: {', '.join(arrays) or 'nothing'})")
    shapes = found["text"].shape, found["text_mask"].shape
    if len(shapes[0]) != 3 or shapes[1] != shapes[0][:2] or not shapes[0][0]:
        raise DataError(f"{path}: tokens {shapes[0]} and mask {shapes[1]} should be [N, L, D] and [N, L]")
    return {**found, "text_mask": found["text_mask"].astype(bool)}


def one_hot(caption: str, vocabulary: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """Return {"text": float16 [length, words + length], "text_mask": bool [length]} of a caption.

    Row i is its i-th word's place in the vocabulary, one-hot, beside i, one-hot: order must be told, as attention to a
    text has none.

    Raises:
      DataError: a word that the vocabulary lacks, or more words than `length`.

    >>> one_hot("a red ring", ("a", "red", "ring"), 4)["text_mask"].tolist()
    [True, True, True, False]
    """
    words = caption.split()
    unknown = [word for word in words if word not in vocabulary]
    if unknown or len(words) > length:
        problem = f"the word {unknown[0]!r} is not in the vocabulary" if unknown else f"more than {length} words"
        raise DataError(f"caption {caption!r}: {problem}")
    tokens = np.zeros((length, len(vocabulary) + length), np.float16)
    for place, word in enumerate(words):
        tokens[place, [list(vocabulary).index(word), len(vocabulary) + place]] = 1
    return {"text": tokens, "text_mask": np.arange(length) < len(words)}


@register("source", "one_hot_words")
@dataclasses.dataclass(frozen=True)
class OneHotWords:
    """Wraps another source, with its captions as one-hot words.

    Args:
      source: name or configuration of a source with captions.
      vocabulary: every word that captions may have.
      length: tokens of a text; a token has len(vocabulary) + length features.
      split: of the source.

    Raises:
      ConfigError: an empty vocabulary, or a word in it twice.
      DataError: a source without captions, at the first example; see also `one_hot`.
    """

    source: Any
    vocabulary: Sequence[str]
    length: Count = 8
    split: str = "train"

    def __post_init__(self) -> None:
        if not self.vocabulary or len(set(self.vocabulary)) < len(self.vocabulary) or self.length < 1:
            raise ConfigError("source 'one_hot_words' needs a vocabulary of different words, and a length of at least 1")
        inner = {"name": self.source} if isinstance(self.source, str) else dict(self.source.items())
        object.__setattr__(self, "_inner", build("source", {**inner, "split": self.split}))

    @property
    def name(self) -> str:
        return f"one-hot words of {self._inner.name}"

    @property
    def num_classes(self) -> int:
        return self._inner.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._inner.class_names

    def identity(self) -> dict[str, Any]:
        """Return what the examples of the inner source are, as far as it says."""
        return self._inner.identity() if isinstance(self._inner, Identified) else {}

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Example:
        example = self._inner[index]
        if "caption" not in example:
            raise DataError(f"source 'one_hot_words': the source {self._inner.name!r} has no captions")
        return {**example, **one_hot(example["caption"], self.vocabulary, self.length)}
