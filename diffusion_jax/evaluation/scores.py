"""The metrics by name: functions of `MetricInputs` that give numbers. An interval, [low, high], is NAME_interval."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_jax import metrics
from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.evaluation.held_out import (
    accuracy_by_time,
    bound_terms,
    held_out_loss,
    ode_bits_per_dim,
    summary,
    terms_table,
)
from diffusion_jax.evaluation.inputs import WHENCE, MetricInputs
from diffusion_jax.evaluation.results import Table
from diffusion_jax.features.classifier import train_classifier
from diffusion_jax.features.extractor import BATCH
from diffusion_jax.inference.sample_sets import count_duplicates
from diffusion_jax.metrics.frechet import frechet_distance, warn_if_few
from diffusion_jax.metrics.manifolds import nearest_rows
from diffusion_jax.systems import Classifies, Denoises, Samples

_LOG = logging.getLogger(__name__)

_CHAIN_IMAGES = 16  # whose bits per dimension are computed where the process is a chain
_HELD = 50_000  # generated images in memory, to train a classifier on


def _distance_name(inputs: MetricInputs) -> str:
    """FID where the features are Inception's; other networks' distances have other names."""
    network = inputs.extractor.name.split("/")[0]
    return {"inception": "fid", "dinov2": "fd_dinov2"}.get(network, "frechet_distance")


def fid(inputs: MetricInputs) -> dict[str, Any]:
    """The Frechet distance of pooled features, with an interval, its limit for many samples, and the floor."""
    reference, rows = inputs.reference, inputs.features["pool"]
    name, level = _distance_name(inputs), inputs.settings.level
    real = reference.gaussian()
    warn_if_few(metrics.moments_of(rows))
    reference.warn_if_few(len(rows))
    interval = metrics.frechet_interval(rows, real, level=level)
    found: dict[str, Any] = {name: interval.value, f"{name}_interval": [interval.low, interval.high]}
    if len(rows) >= 1000:
        limit = metrics.frechet_infinity(rows, real, level=level, seed=inputs.settings.seed).value
        found |= {f"{name}_infinity": limit.value, f"{name}_infinity_interval": [limit.low, limit.high]}
    if reference.held_out_features is not None and len(reference.held_out_features["pool"]) > 1:
        floor = name.replace("_distance", "") + "_reference"
        found[floor] = frechet_distance(metrics.moments_of(reference.held_out_features["pool"]), real, warn=False)
    return found


def sfid(inputs: MetricInputs) -> dict[str, Any]:
    """The Frechet distance of spatial features (Inception alone has them)."""
    real = inputs.reference.gaussian("spatial")
    return {"sfid": frechet_distance(metrics.moments_of(inputs.features["spatial"]), real)}


def kid(inputs: MetricInputs) -> dict[str, Any]:
    """The kernel distance of pooled features: unbiased, so that it serves for few samples too."""
    real, settings = inputs.reference.features["pool"], inputs.settings
    size = min(settings.kid_subset_size, inputs.num, len(real))
    rows = inputs.features["pool"]
    score = metrics.kid(rows, real, subsets=settings.kid_subsets, subset_size=size, seed=settings.seed)
    return {"kid": score.mean, "kid_std": score.std}


def inception_score(inputs: MetricInputs) -> dict[str, Any]:
    """The Inception Score, of the network's own logits."""
    score = metrics.inception_score(inputs.features["logits_unbiased"])
    return {"inception_score": score.mean, "inception_score_std": score.std}


def precision_recall(inputs: MetricInputs) -> dict[str, Any]:
    """Precision and recall of manifolds of nearest neighbours."""
    output = "fc2_relu" if "fc2_relu" in inputs.extractor.dims else "pool"
    variant = inputs.settings.precision_recall
    real = inputs.reference.features[output]
    found = metrics.precision_recall(inputs.features[output], real[:10_000] if variant == "adm" else real, variant=variant)
    return {"precision": found.precision, "recall": found.recall}


def agreement(inputs: MetricInputs) -> dict[str, Any]:
    """The share of samples in which a classifier of the data sees the class that was asked for."""
    classifier, labels = inputs.classifier, inputs.labels
    found: dict[str, Any] = {"classifier_accuracy": classifier.accuracy}
    if labels is not None:
        seen = [classifier.look(images)[0] for images in inputs.samples.batches(BATCH, inputs.num)]
        found["agreement"] = float((np.concatenate(seen) == labels).mean())
    return found


def accuracy_score(inputs: MetricInputs) -> dict[str, Any]:
    """Classification accuracy score: of a classifier trained on samples, on real held-out images (arXiv 1905.10887)."""
    labels, model = inputs.labels, inputs.model
    images = np.concatenate(list(inputs.samples.batches(BATCH, min(inputs.num, _HELD))))
    test = list(model.pipeline("test").one_pass(BATCH))
    held_out = tuple(np.concatenate([batch[name] for batch in test]) for name in ("image", "label"))
    classifier = train_classifier(
        images, labels[: len(images)], model.pipeline("train").num_classes, held_out=held_out,
        steps=inputs.settings.classifier_steps, seed=inputs.settings.seed,
    )  # fmt: skip
    return {"classification_accuracy_score": classifier.accuracy}


def loss(inputs: MetricInputs) -> dict[str, Any]:
    """The training loss on held-out images."""
    model = inputs.model
    return {
        "held_out_loss": held_out_loss(
            model.system, model.params, model.pipeline("test"), seed=inputs.settings.seed, frozen=model.run.frozen()
        )
    }


def noisy_accuracy(inputs: MetricInputs) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of a noisy classifier on held-out images, in each quarter of t and over all."""
    model, settings = inputs.model, inputs.settings
    return accuracy_by_time(model.system, model.params, model.pipeline("test"), limit=settings.num, seed=settings.seed)


def variational(inputs: MetricInputs) -> dict[str, Any]:
    """The variational bound of held-out images in bits per dimension, and its parts."""
    model = inputs.model
    images = inputs.settings.bits_per_dim
    if images is None:
        images = _CHAIN_IMAGES if model.system.process.num_steps else 0
    if not images:
        return {}
    terms = bound_terms(model.system, model.params, model.pipeline("test"), limit=images, seed=inputs.settings.seed)
    bound = summary(terms)
    found: dict[str, Any] = {"bits_per_dim": bound.pop("bits_per_dim"), "bits_per_dim_parts": bound}
    return found | ({"bits_per_dim_terms": Table(terms_table(terms))} if inputs.settings.bits_per_dim_terms else {})


def flow_likelihood(inputs: MetricInputs) -> dict[str, Any]:
    """The likelihood of held-out images under the probability-flow ODE, in bits per dimension."""
    model, settings = inputs.model, inputs.settings
    images = settings.bits_per_dim or _CHAIN_IMAGES
    found = ode_bits_per_dim(
        model.system, model.params, model.pipeline("test"),
        limit=images, steps=settings.ode_steps, divergence=settings.ode_divergence, seed=settings.seed,
    )  # fmt: skip
    error = float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else float("nan")
    return {"ode_bits_per_dim": float(found.mean()), "ode_bits_per_dim_std_error": error}


def restoration(inputs: MetricInputs) -> dict[str, Any]:
    """PSNR and SSIM against the originals, and consistency with the low-resolution images; of super-resolution alone."""
    low_res, originals = inputs.low_res, inputs.originals
    images = np.concatenate(list(inputs.samples.batches(BATCH, min(inputs.num, len(low_res)))))
    found = {"psnr": float(metrics.psnr(images, originals[: len(images)]).mean())}
    if min(images.shape[1:3]) >= 11:
        found["ssim"] = float(metrics.ssim(images, originals[: len(images)]).mean())
    return found | {"consistency": float(metrics.consistency(images, low_res[: len(images)]).mean())}


def duplicates(inputs: MetricInputs) -> dict[str, Any]:
    """How many samples equal an earlier one in every pixel."""
    count = count_duplicates(inputs.samples, inputs.num)
    if count:
        _LOG.warning("%d of %d samples of %s are copies of others.", count, inputs.num, inputs.samples.name)
    return {"duplicates": count}


def neighbours(inputs: MetricInputs) -> dict[str, Any]:
    """How near samples lie to training images, in features, beside how near held-out images do: below 1, copying.

    The median of each sample's distance to its nearest training image, over the same median of held-out images.
    """
    reference = inputs.reference
    real = reference.features["pool"]
    distance = float(np.median(nearest_rows(inputs.features["pool"], real, 1)[0]))
    if reference.held_out_features is None:
        return {"neighbour_distance": distance}
    usual = float(np.median(nearest_rows(reference.held_out_features["pool"], real, 1)[0]))
    return {"neighbour_distance": distance, "neighbour_distance_ratio": distance / max(usual, 1e-30)}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric and what it cannot do without.

    Attributes:
      compute: inputs -> numbers by name.
      needs: attributes of `MetricInputs`.
      outputs: of the network, any one of them.
      real_images: whether the reference must have images, not statistics alone.
      default: whether it is computed where no metrics are named.
      ability: that the model must have, where there is a model; None for any.
    """

    compute: Callable[[MetricInputs], dict[str, Any]]
    needs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    real_images: bool = False
    default: bool = True
    ability: Any = Samples

    def lacks(self, inputs: MetricInputs) -> str | None:
        """Return what is missing, in words; None where everything is there."""
        if self.ability is not None and inputs.model is not None and not isinstance(inputs.model.system, self.ability):
            return _ABLE[self.ability]
        for name in self.needs:
            if getattr(inputs, name) is None:
                return WHENCE[name]
        if self.outputs and not set(self.outputs) & set(inputs.extractor.dims):
            return f"the output {' or '.join(self.outputs)}, which the network {inputs.extractor.name!r} has not"
        if self.real_images and inputs.reference.images is None:
            return (
                "real images, and the reference has statistics alone: give a run's --workdir, or make statistics with images "
                "(python -m diffusion_jax.reference_stats --images)"
            )
        return None


_ABLE = {Samples: "a model that draws images", Denoises: "a model with a denoiser", Classifies: "a noisy classifier"}
_PAIR = ("extractor", "reference")
METRICS: dict[str, Metric] = {
    "loss": Metric(loss, ("model",), ability=None),
    "accuracy": Metric(noisy_accuracy, ("model",), ability=Classifies),
    "vlb": Metric(variational, ("model",), ability=Denoises),
    "ode": Metric(flow_likelihood, ("model",), default=False, ability=Denoises),
    "fid": Metric(fid, _PAIR, ("pool",)),
    "sfid": Metric(sfid, _PAIR, ("spatial",)),
    "kid": Metric(kid, _PAIR, ("pool",), real_images=True),
    "is": Metric(inception_score, ("extractor",), ("logits_unbiased",)),
    "pr": Metric(precision_recall, _PAIR, ("fc2_relu", "pool"), real_images=True),
    "agreement": Metric(agreement, ("classifier",)),
    "cas": Metric(accuracy_score, ("labels", "model"), default=False),
    "sr": Metric(restoration, ("low_res", "originals")),
    "duplicates": Metric(duplicates),
    "neighbours": Metric(neighbours, _PAIR, ("pool",), real_images=True),
}


def check_names(names: Sequence[str]) -> None:
    """Raise a `ConfigError` for the name of no metric."""
    for name in names:
        check_choice("metrics", name, METRICS)


def compare_with_data(names: Sequence[str]) -> bool:
    """Say whether any of these metrics, or the usual ones, hold samples against data in features or by a classifier."""
    return not names or any({*_PAIR, "classifier"} & set(METRICS[name].needs) for name in names)


def choose(inputs: MetricInputs, names: Sequence[str] = ()) -> list[str]:
    """The metrics to compute: those named, or else all that cost little and for which everything is there.

    Raises:
      ConfigError: an unknown name, or a metric that lacks what it needs.
    """
    for name in names:
        lack = METRICS[name].lacks(inputs)
        if lack is not None:
            raise ConfigError(f"the metric {name!r} needs {lack}")
    return list(names) or [name for name, metric in METRICS.items() if metric.default and metric.lacks(inputs) is None]
