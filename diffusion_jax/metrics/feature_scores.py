"""Scores of features: Kernel Inception Distance, Inception Score and CLIP scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.lazy import lazy
from diffusion_jax.metrics.frechet import feature_rows, same_width

special = lazy("scipy.special")


class Score(NamedTuple):
    """A mean over subsets or splits, and their standard deviation (denominator: their number)."""

    mean: float
    std: float


def cubic_mmd(first: Any, second: Any) -> float:
    """The unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3; it may be negative.

    Args:
      first: [m, D].
      second: [n, D], m and n at least 2. Sums are in float64.

    Source: Binkowski et al. 2018, section 3 (arXiv 1801.01401).
    """
    first, second = (feature_rows(rows).astype(np.float64) for rows in (first, second))
    same_width(first, second)
    if min(len(first), len(second)) < 2:
        raise DataError(f"KID needs at least 2 samples of either side, got {len(first)} and {len(second)}")
    return _within(first) + _within(second) - 2 * float(_kernel(first, second).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x.y / D + 1)^3 of all pairs, float64 [m, n]; products are ten times as fast as a power."""
    products = x @ y.T
    products /= x.shape[1]
    products += 1
    cubes = products * products
    cubes *= products
    return cubes


def _within(x: np.ndarray) -> float:
    """The mean of the kernel over pairs of different rows."""
    values = _kernel(x, x)
    return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))


def kid(generated: Any, real: Any, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> Score:
    """The mean of `cubic_mmd` over random subsets, and its standard deviation over them. Published values are often x 1000.

    The subsets of a seed are those that torch-fidelity draws, so that the numbers can be compared digit by digit.

    Args:
      generated, real: features [N, D] of each side, such as pool_3.
      subsets: how many pairs of subsets.
      subset_size: samples in each, without repetition.
      seed: of the subsets, in 0 .. 2^32 - 1.

    Raises:
      DataError: fewer samples than `subset_size`, or features of different widths.

    Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """
    if subsets < 1 or subset_size < 2:
        raise ConfigError(f"KID needs subsets of at least 1 and subset_size of at least 2, got {subsets} and {subset_size}")
    generated, real = feature_rows(generated), feature_rows(real)
    same_width(generated, real)
    fewest = min(len(generated), len(real))
    if fewest < subset_size:
        raise DataError(f"KID with subset_size {subset_size} of {fewest} samples: use subset_size={fewest}, or more samples")
    rng, values = np.random.RandomState(seed), []
    sets = [rows.astype(np.float64) for rows in (generated, real)]
    whole = [_within(rows) if len(rows) == subset_size else None for rows in sets]  # of which each subset is a permutation
    for _ in range(subsets):
        chosen = [rows[rng.choice(len(rows), subset_size, replace=False)] for rows in sets]
        own = [_within(rows) if known is None else known for rows, known in zip(chosen, whole, strict=True)]
        values.append(sum(own) - 2 * float(_kernel(*chosen).mean()))
    return Score(float(np.mean(values)), float(np.std(values)))


def inception_score(
    logits: Any, *, split_size: int = 5000, splits: int | None = None, shuffle_seed: int | None = None
) -> Score:
    """exp(mean over x of KL(p(y|x) || mean of p(y|x))), as mean and standard deviation over splits.

    Args:
      logits: [N, K]; published scores take the 1008 logits of the 2015 Inception graph without its bias.
      split_size: images in a split; the last split may be smaller, as the ADM evaluator has it.
      splits: instead, so many splits of (almost) equal size, as the first implementations have it.
      shuffle_seed: shuffle the images first, in the order in which torch-fidelity does; None keeps their order, which
        matters where classes come one after another.

    Raises:
      ConfigError: no splits, or more splits than images.
      DataError: logits that are not [N, K], NaN or infinite.

    Sources: Salimans et al. 2016, section 4 (arXiv 1606.03498); Barratt & Sharma 2018 on splits (arXiv 1801.01973).

    >>> inception_score([[100.0, 0.0], [0.0, 100.0]])  # two classes, certain of each
    Score(mean=2.0, std=0.0)
    """
    rows = feature_rows(logits, "logits")
    if splits is None:
        if split_size < 1:
            raise ConfigError(f"the Inception Score needs split_size of at least 1, got {split_size}")
        edges = [*range(0, len(rows), split_size), len(rows)]
    else:
        if not 1 <= splits <= len(rows):
            raise ConfigError(f"the Inception Score of {len(rows)} images cannot have {splits} splits")
        edges = [number * len(rows) // splits for number in range(splits + 1)]
    if shuffle_seed is not None:
        rows = rows[np.random.RandomState(shuffle_seed).permutation(len(rows))]
    scores = [_of_split(rows[start:stop]) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return Score(float(np.mean(scores)), float(np.std(scores)))


def _of_split(logits: np.ndarray) -> float:
    log_p = special.log_softmax(logits.astype(np.float64), axis=1)
    log_marginal = special.logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(1).mean()))


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
    check_choice("definition of the CLIP score", definition, DEFINITIONS)
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
