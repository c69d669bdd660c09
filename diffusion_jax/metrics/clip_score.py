"""CLIP scores: how well images fit their captions, in the three definitions that are in use."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError, DataError, nearest
from diffusion_jax.metrics.checks import feature_rows, same_width

DEFINITIONS = ("clipscore", "percent", "glide")


def clip_score(images: Any, texts: Any, *, definition: str = "percent", logit_scale: float | None = None) -> float:
    """The mean over pairs of what a definition makes of the cosine between an image and its caption.

    Numbers of different definitions, CLIP models, resizings or caption prefixes are not comparable: state all four.

    Args:
      images, texts: embeddings [N, D], of any length; row i of one belongs to row i of the other.
      definition: "clipscore", 2.5 max(cos, 0), for ViT-B/32 and captions that begin with "A photo depicts"; "percent",
        100 max(cos, 0), the form of most libraries; "glide", logit_scale * cos.
      logit_scale: the model's own, about 100 (exp of the parameter of that name); for "glide" alone.

    Raises:
      ConfigError: an unknown definition, or "glide" without a logit_scale (or another one with).
      DataError: different numbers or widths, or an embedding that is 0, NaN or infinite.

    Sources: Hessel et al. 2021 (arXiv 2104.08718); Nichol et al. 2021 (arXiv 2112.10741).

    >>> clip_score([[3.0, 4.0]], [[1.0, 0.0]], definition="clipscore")
    1.5
    """
    if definition not in DEFINITIONS:
        hint = nearest(definition, DEFINITIONS)
        raise ConfigError(f"unknown definition of the CLIP score {definition!r}{hint} (known: {', '.join(DEFINITIONS)})")
    if (definition == "glide") != (logit_scale is not None):
        raise ConfigError(f"the CLIP score needs logit_scale for 'glide' and for no other definition, not for {definition!r}")
    images, texts = feature_rows(images, "image embeddings"), feature_rows(texts, "text embeddings")
    same_width(images, texts)
    if len(images) != len(texts):
        raise DataError(f"the CLIP score needs a caption for each image, got {len(images)} images and {len(texts)} captions")
    cosines = (_unit(images, "image") * _unit(texts, "text")).sum(1)
    if definition == "glide":
        return float(logit_scale * cosines.mean())
    return float((2.5 if definition == "clipscore" else 100.0) * np.maximum(cosines, 0).mean())


def _unit(rows: np.ndarray, name: str) -> np.ndarray:
    """float64 [N, D] of length 1."""
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise DataError(f"{int((norms == 0).sum())} of {len(rows)} {name} embeddings are 0 and have no direction")
    return rows / norms
