"""Captions as one-hot words: the simplest embeddings of text, for small studies without a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_jax.data.sources.base import Example
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.registry import build, register


def one_hot(caption: str, vocabulary: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """{"text": float16 [length, words + length], "text_mask": bool [length]} of a caption.

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
    """Another source, with its captions as one-hot words.

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
    length: int = 8
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

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Example:
        example = self._inner[index]
        if "caption" not in example:
            raise DataError(f"source 'one_hot_words': the source {self._inner.name!r} has no captions")
        return {**example, **one_hot(example["caption"], self.vocabulary, self.length)}
