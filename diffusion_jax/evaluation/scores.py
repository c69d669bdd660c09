"""The metrics by name: each takes a `Subject` and gives numbers. An interval is [low, high] under the name + "_interval"."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_jax import metrics
from diffusion_jax.errors import ConfigError, nearest
from diffusion_jax.evaluation.held_out import bound_terms, held_out_loss, ode_bits_per_dim, summary, terms_table
from diffusion_jax.evaluation.noisy_accuracy import accuracy_by_time
from diffusion_jax.evaluation.results import Table
from diffusion_jax.evaluation.subject import WHENCE, Subject
from diffusion_jax.features.classifier import train_classifier
from diffusion_jax.features.passes import BATCH
from diffusion_jax.inference.sample_sets import count_duplicates
from diffusion_jax.metrics.frechet import frechet_distance, warn_if_few
from diffusion_jax.metrics.neighbours import nearest_rows

_LOG = logging.getLogger(__name__)

_CHAIN_IMAGES = 16  # whose bits per dimension are computed where the process is a chain
_HELD = 50_000  # generated images in memory, to train a classifier on


def _distance_name(subject: Subject) -> str:
    """FID where the features are Inception's; other networks' distances have other names."""
    network = subject.extractor.name.split("/")[0]
    return {"inception": "fid", "dinov2": "fd_dinov2"}.get(network, "frechet_distance")


def fid(subject: Subject) -> dict[str, Any]:
    """The Frechet distance of pooled features, with an interval, its limit for many samples, and the floor."""
    reference, rows = subject.reference, subject.features["pool"]
    name, level = _distance_name(subject), subject.options.level
    real = reference.gaussian()
    warn_if_few(metrics.moments_of(rows))
    interval = metrics.frechet_interval(rows, real, level=level)
    found: dict[str, Any] = {name: interval.value, f"{name}_interval": [interval.low, interval.high]}
    if len(rows) >= 1000:
        limit = metrics.frechet_infinity(rows, real, level=level, seed=subject.options.seed).value
        found |= {f"{name}_infinity": limit.value, f"{name}_infinity_interval": [limit.low, limit.high]}
    if reference.held_out_features is not None and len(reference.held_out_features["pool"]) > 1:
        floor = name.replace("_distance", "") + "_reference"
        found[floor] = frechet_distance(metrics.moments_of(reference.held_out_features["pool"]), real, warn=False)
    return found


def sfid(subject: Subject) -> dict[str, Any]:
    """The Frechet distance of spatial features (Inception alone has them)."""
    real = subject.reference.gaussian("spatial")
    return {"sfid": frechet_distance(metrics.moments_of(subject.features["spatial"]), real)}


def kid(subject: Subject) -> dict[str, Any]:
    """The kernel distance of pooled features: unbiased, so that it serves for few samples too."""
    real, options = subject.reference.features["pool"], subject.options
    size = min(options.kid_subset_size, subject.num, len(real))
    rows = subject.features["pool"]
    score = metrics.kid(rows, real, subsets=options.kid_subsets, subset_size=size, seed=options.seed)
    return {"kid": score.mean, "kid_std": score.std}


def inception_score(subject: Subject) -> dict[str, Any]:
    """The Inception Score, of the network's own logits."""
    score = metrics.inception_score(subject.features["logits_unbiased"])
    return {"inception_score": score.mean, "inception_score_std": score.std}


def precision_recall(subject: Subject) -> dict[str, Any]:
    """Precision and recall of manifolds of nearest neighbours."""
    output = "fc2_relu" if "fc2_relu" in subject.extractor.dims else "pool"
    variant = subject.options.precision_recall
    real = subject.reference.features[output]
    found = metrics.precision_recall(subject.features[output], real[:10_000] if variant == "adm" else real, variant=variant)
    return {"precision": found.precision, "recall": found.recall}


def agreement(subject: Subject) -> dict[str, Any]:
    """The share of samples in which a classifier of the data sees the class that was asked for."""
    judge, labels = subject.judge, subject.labels
    found: dict[str, Any] = {"classifier_accuracy": judge.accuracy}
    if labels is not None:
        seen = [judge.look(images)[0] for images in subject.samples.batches(BATCH, subject.num)]
        found["agreement"] = float((np.concatenate(seen) == labels).mean())
    return found


def accuracy_score(subject: Subject) -> dict[str, Any]:
    """Classification accuracy score: of a classifier trained on samples, on real held-out images (arXiv 1905.10887)."""
    labels, model = subject.labels, subject.model
    images = np.concatenate(list(subject.samples.batches(BATCH, min(subject.num, _HELD))))
    test = list(model.pipeline("test").one_pass(BATCH))
    held_out = tuple(np.concatenate([batch[name] for batch in test]) for name in ("image", "label"))
    judge = train_classifier(
        images, labels[: len(images)], model.system.num_classes, held_out=held_out,
        steps=subject.options.classifier_steps, seed=subject.options.seed,
    )  # fmt: skip
    return {"classification_accuracy_score": judge.accuracy}


def loss(subject: Subject) -> dict[str, Any]:
    """The training loss on held-out images."""
    model = subject.model
    return {"held_out_loss": held_out_loss(model.system, model.params, model.pipeline("test"), seed=subject.options.seed)}


def noisy_accuracy(subject: Subject) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of a noisy classifier on held-out images, in each quarter of t and over all."""
    model, options = subject.model, subject.options
    return accuracy_by_time(model.system, model.params, model.pipeline("test"), limit=options.num, seed=options.seed)


def variational(subject: Subject) -> dict[str, Any]:
    """The variational bound of held-out images in bits per dimension, and its parts."""
    model = subject.model
    images = subject.options.bits_per_dim
    if images is None:
        images = _CHAIN_IMAGES if model.system.process.num_steps else 0
    if not images:
        return {}
    terms = bound_terms(model.system, model.params, model.pipeline("test"), limit=images, seed=subject.options.seed)
    bound = summary(terms)
    found: dict[str, Any] = {"bits_per_dim": bound.pop("bits_per_dim"), "bits_per_dim_parts": bound}
    return found | ({"bits_per_dim_terms": Table(terms_table(terms))} if subject.options.bits_per_dim_terms else {})


def flow_likelihood(subject: Subject) -> dict[str, Any]:
    """The likelihood of held-out images under the probability-flow ODE, in bits per dimension."""
    model, options = subject.model, subject.options
    images = options.bits_per_dim or _CHAIN_IMAGES
    found = ode_bits_per_dim(
        model.system, model.params, model.pipeline("test"),
        limit=images, steps=options.ode_steps, divergence=options.ode_divergence, seed=options.seed,
    )  # fmt: skip
    error = float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else float("nan")
    return {"ode_bits_per_dim": float(found.mean()), "ode_bits_per_dim_std_error": error}


def restoration(subject: Subject) -> dict[str, Any]:
    """PSNR and SSIM against the originals, and consistency with the low-resolution images; of super-resolution alone."""
    low_res, originals = subject.low_res, subject.originals
    images = np.concatenate(list(subject.samples.batches(BATCH, min(subject.num, len(low_res)))))
    found = {"psnr": float(metrics.psnr(images, originals[: len(images)]).mean())}
    if min(images.shape[1:3]) >= 11:
        found["ssim"] = float(metrics.ssim(images, originals[: len(images)]).mean())
    return found | {"consistency": float(metrics.consistency(images, low_res[: len(images)]).mean())}


def duplicates(subject: Subject) -> dict[str, Any]:
    """How many samples equal an earlier one in every pixel."""
    count = count_duplicates(subject.samples, subject.num)
    if count:
        _LOG.warning("%d of %d samples of %s are copies of others.", count, subject.num, subject.samples.name)
    return {"duplicates": count}


def neighbours(subject: Subject) -> dict[str, Any]:
    """How near samples lie to training images, in features, beside how near held-out images do: below 1, copying.

    The median of each sample's distance to its nearest training image, over the same median of held-out images.
    """
    reference = subject.reference
    real = reference.features["pool"]
    distance = float(np.median(nearest_rows(subject.features["pool"], real, 1)[0]))
    if reference.held_out_features is None:
        return {"neighbour_distance": distance}
    usual = float(np.median(nearest_rows(reference.held_out_features["pool"], real, 1)[0]))
    return {"neighbour_distance": distance, "neighbour_distance_ratio": distance / max(usual, 1e-30)}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric and what it cannot do without.

    Attributes:
      compute: subject -> numbers by name.
      needs: attributes of a `Subject`.
      outputs: of the network, any one of them.
      real_images: whether the reference must have images, not statistics alone.
      default: whether it is computed where no metrics are named.
      of: what it measures: "images" that were drawn, a "classifier" of noisy ones, or "either".
    """

    compute: Callable[[Subject], dict[str, Any]]
    needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    real_images: bool = False
    default: bool = True
    of: str = "images"

    def lacks(self, subject: Subject) -> str | None:
        """What is missing, in words; None where everything is there."""
        if self.of not in ("either", subject.kind):
            return {"images": "a model that draws images", "classifier": "a noisy classifier"}[self.of]
        for name in self.needs:
            if getattr(subject, name) is None:
                return WHENCE[name]
        if self.outputs and not set(self.outputs) & set(subject.extractor.dims):
            return f"the output {' or '.join(self.outputs)}, which the network {subject.extractor.name!r} has not"
        if self.real_images and subject.reference.images is None:
            return (
                "real images, and the reference has statistics alone: give a run's --workdir, or make statistics with images "
                "(python -m diffusion_jax.reference_stats --images)"
            )
        return None


_PAIR = ("extractor", "reference")
METRICS: dict[str, Metric] = {
    "loss": Metric(loss, ("model",), of="either"),
    "accuracy": Metric(noisy_accuracy, ("model",), of="classifier"),
    "vlb": Metric(variational, ("model",)),
    "ode": Metric(flow_likelihood, ("model",), default=False),
    "fid": Metric(fid, _PAIR, ("pool",)),
    "sfid": Metric(sfid, _PAIR, ("spatial",)),
    "kid": Metric(kid, _PAIR, ("pool",), real_images=True),
    "is": Metric(inception_score, ("extractor",), ("logits_unbiased",)),
    "pr": Metric(precision_recall, _PAIR, ("fc2_relu", "pool"), real_images=True),
    "agreement": Metric(agreement, ("judge",)),
    "cas": Metric(accuracy_score, ("labels", "model"), default=False),
    "sr": Metric(restoration, ("low_res", "originals")),
    "duplicates": Metric(duplicates),
    "neighbours": Metric(neighbours, _PAIR, ("pool",), real_images=True),
}


def check_names(names: Sequence[str]) -> None:
    """Raise a `ConfigError` for the name of no metric."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}{nearest(name, METRICS)} (known: {', '.join(METRICS)})")


def choose(subject: Subject, names: Sequence[str] = ()) -> list[str]:
    """The metrics to compute: those named, or else all that cost little and for which everything is there.

    Raises:
      ConfigError: an unknown name, or a metric that lacks what it needs.
    """
    check_names(names)
    for name in names:
        lack = METRICS[name].lacks(subject)
        if lack is not None:
            raise ConfigError(f"the metric {name!r} needs {lack}")
    return list(names) or [name for name, metric in METRICS.items() if metric.default and metric.lacks(subject) is None]
