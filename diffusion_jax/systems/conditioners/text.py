"""Text, given as arrays of embeddings that any encoder made beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.data import Pipeline
from diffusion_jax.data.sources.text import texts_from
from diffusion_jax.errors import ConfigError
from diffusion_jax.registry import register
from diffusion_jax.systems.conditioners.base import Columns, Conditioner, DataOf, Flag
from diffusion_jax.systems.sampling import Sampling
from diffusion_jax.values import Count, Fraction, Natural


@register("conditioner", "text")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Conditioner):
    """Texts as embeddings: batches and requests have "text" [B, L, D], floating, and "text_mask" [B, L].

    A dropped text has no tokens and is all zeros, which guidance calls null; a request may name another null by
    "negative_text" and "negative_text_mask".

    Args:
      dim: D, the features of a token.
      length: L of the network's example inputs; batches and requests may have another.
      pooled_dim: above 0 a given pooled vector, "text_pooled" [B, pooled_dim], belongs to every text, for networks that take
        one.

    Source: Saharia et al. 2022, sections 2.1 and 2.2 (arXiv 2205.11487).
    """

    dim: Count
    length: Count = 128
    pooled_dim: Natural = 0
    drop: Fraction = 0.1

    name = "text"
    keys = frozenset({"text"})
    columns = tuple(f"{sign}text{part}" for sign in ("", "negative_") for part in ("", "_mask", "_pooled"))
    flags = (
        Flag("text", "Text embeddings: an npz of tokens [N, L, D] and mask [N, L]; held-out ones if left out."),
    )  # fmt: skip
    needs_data = True

    @property
    def _endings(self) -> dict[str, str]:
        """The network's name of each array of a text, and its ending in batches and requests."""
        return {"tokens": "", "mask": "_mask"} | ({"pooled": "_pooled"} if self.pooled_dim else {})

    @property
    def meaning(self) -> str:
        """Return the width of the embeddings."""
        return f"texts of {self.dim} features"

    def network_fields(self) -> dict[str, Any]:
        """Return the width and length of the texts."""
        fields = {"context_dim": self.dim, "context_length": self.length}
        return fields | ({"pooled_dim": self.pooled_dim} if self.pooled_dim else {})

    def request(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the texts of the batch."""
        return {f"text{ending}": batch[f"text{ending}"] for ending in self._endings.values()}

    def _text(self, given: Mapping[str, Any], name: str = "text") -> dict[str, jax.Array]:
        arrays = {part: jnp.asarray(given[name + ending]) for part, ending in self._endings.items()}
        return {part: x.astype(bool if part == "mask" else jnp.float32) for part, x in arrays.items()}

    def sampling(self, request: Mapping[str, Any], key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict[str, Any]:
        """Return tokens, mask and perhaps the pooled vector."""
        return {"text": self._text(request)}

    def null(self, cond: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return texts without tokens, or the request's negative ones."""
        if request is not None and "negative_text" in request:
            return {"text": self._text(request, "negative_text")}
        return super().null(cond)

    def from_flags(self, given: Mapping[str, str], source: DataOf) -> tuple[Columns, int | None]:
        """Return the texts of the file that --text names."""
        return (texts_from(given["text"]) if "text" in given else {}), None

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` unless there are texts, of the model's width."""
        for name in ["text"] + ["negative_text"] * ("negative_text" in request):
            for part, ending in self._endings.items():
                field = name + ending
                if field not in request:
                    raise ConfigError(f"the model is conditioned on text: a request needs {field!r} (has: {sorted(request)})")
                shape, tokens = jnp.shape(request[field]), jnp.shape(request[name])
                wanted = {"tokens": (*tokens[:2], self.dim), "mask": tokens[:2], "pooled": (*tokens[:1], self.pooled_dim)}
                if len(tokens) != 3 or shape != wanted[part]:
                    more = f", pooled vectors [N, {self.pooled_dim}]" if self.pooled_dim else ""
                    raise ConfigError(f"{field!r} has the shape {shape}, but texts are [N, L, {self.dim}], masks [N, L]{more}")

    def check_data(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` unless the data have embeddings of the model's width."""
        example = next(pipeline.one_pass(1))
        if "text" not in example:
            raise ConfigError(
                "the data have no text embeddings: give the folder source `embeddings`, or wrap a source that has captions "
                "in 'one_hot_words'"
            )
        self.check_request(self.request(example))
