"""Cascades: trained stages in order, each drawing at a higher resolution from what the one before it drew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.rng import named
from diffusion_jax.sampling import guidance
from diffusion_jax.systems.base import Request
from diffusion_jax.systems.images import quantize
from diffusion_jax.systems.sampling import Sampling
from diffusion_jax.systems.super_resolution import SuperResolution


class Stage(NamedTuple):
    """A trained system, how to sample it, and a `NoisyClassifier` whose gradient it follows, if any.

    The parameters of a stage with a classifier are `Guided`.
    """

    system: Any
    sampling: Sampling
    classifier: Any = None


class Guided(NamedTuple):
    """The parameters of a stage that a classifier guides."""

    network: Any
    classifier: Any


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Stages in order of resolution; one stage alone is a cascade too.

    Each stage after the first takes the previous stage's output as its low-resolution image, at its own augmentation
    level s, with its own solver, steps and guidance. Not truncated: the previous stage is run to the end, clipped,
    optionally rounded to 8 bits, and noised to s. Truncated: the previous stage's chain is stopped at the noise of s
    and fed as it is.

    Args:
      stages: in order.
      first: the place of the first of them in a longer cascade, whose noise it then has: the later stages of that cascade
        can be drawn by themselves, from stored images as "low_res".

    Raises:
      ConfigError: sizes that do not chain, classes that differ, or settings that a stage cannot be sampled with.

    Source: Ho et al. 2021, section 4 (arXiv 2106.15282).
    """

    stages: Sequence[Stage]
    first: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("a cascade needs at least one stage")
        for stage in self.stages:
            stage.system.check_sampling(stage.sampling)
            _check_classifier(stage)
        for number, (before, after) in enumerate(zip(self.stages, self.stages[1:], strict=False), start=2):
            _check_pair(number, before, after)
        for number in range(len(self.stages)):
            self._check_end(number)
        classes = {each.num_classes for each in self._labelled} - {0}
        if len(classes) > 1:
            raise ConfigError(f"the stages of the cascade know different numbers of classes: {sorted(classes)}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the last stage."""
        return self.stages[-1].system.image_shape

    @property
    def _labelled(self) -> list[Any]:
        """Whatever may know classes: the stages' systems and their classifiers."""
        return [each for stage in self.stages for each in (stage.system, stage.classifier) if each is not None]

    @property
    def num_classes(self) -> int:
        """Of the stages or classifiers that have classes; 0 if none has."""
        return max(each.num_classes for each in self._labelled)

    def request(self, batch: Any) -> dict[str, Any]:
        """What the first stage, and the labels of all, need to sample what is like this batch."""
        wanted = dict(self.stages[0].system.request(batch))
        if self.num_classes:
            wanted["label"] = batch["label"]
        return wanted

    def check_request(self, request: Request) -> None:
        """As the first stage checks it, and with labels where any stage or classifier has classes."""
        self.stages[0].system.check_request(request)
        for each in self._labelled:
            each.check_labels(request)
        if "label" not in request and any(stage.classifier is not None for stage in self.stages):
            raise ConfigError(f"a classifier guides towards classes: a request needs 'label' (has: {sorted(request)})")
        guided = any(stage.sampling.guidance != 1 and stage.system.num_classes for stage in self.stages)
        if "negative_label" in request and not guided:
            raise ConfigError(
                "negative labels are what classifier-free guidance leads away from: set guidance above 1, on a model with "
                "classes"
            )

    def sample(self, params: Sequence[Any], key: jax.Array, request: Request, indices: jax.Array) -> list[jax.Array]:
        """Draw images from every stage.

        Args:
          params: of each stage's network.
          key: of the run; image i is a function of (key, indices[i]) and its request alone.
          request: of the first stage, "label" int [N] where any stage has classes.
          indices: int [N].

        Returns:
          The images of each stage, float32 [N, H_k, W_k, C] in [-1, 1]. Before a truncated stage this is what the
          stopped chain took the image to be: with noise.
        """
        outputs: list[jax.Array] = []
        for number, (stage, weights) in enumerate(zip(self.stages, params, strict=True)):
            wanted = dict(request)
            if number:
                wanted = {**_shared(request), **_handed_on(outputs[-1], _process(self.stages[number - 1]), stage)}
            end = self._end(number)
            more: dict[str, Any] = {}
            if stage.classifier is not None:
                weights, more["guide"] = weights.network, _guide(stage, weights.classifier, wanted["label"])
            key_of_stage = named(key, "stage", self.first + number)
            outputs.append(stage.system.sample(weights, key_of_stage, wanted, indices, stage.sampling, end=end, **more))
        return outputs

    def _end(self, number: int) -> float:
        """The time at which a stage's chain stops: 0, or the noise level that a truncated next stage wants."""
        if number + 1 == len(self.stages) or not self.stages[number + 1].sampling.truncated:
            return 0.0
        after = self.stages[number + 1]
        return matching_time(_process(self.stages[number]), after.system, after.sampling.aug_level)

    def _check_end(self, number: int) -> None:
        stage, end = self.stages[number], self._end(number)
        first = stage.sampling.build_grid()(_process(stage))[0]
        if end >= first:
            raise ConfigError(
                f"stage {number + 2} of the cascade is truncated at aug_level "
                f"{self.stages[number + 1].sampling.aug_level:g}, as noisy as where stage {number + 1} starts: "
                "lower aug_level"
            )


def _process(stage: Stage) -> Process:
    """What the stage is sampled from, on the schedule that its sampling asks for."""
    return stage.sampling.rebind(stage.system.process)


def matching_time(before: Process, after: SuperResolution, level: float) -> float:
    """The time at which the process that the earlier stage is sampled from is as noisy as the later one's `level`."""
    if level == 0:
        return 0.0
    log_snr = after.aug_process.schedule.log_snr(float(level))
    return float(before.schedule.inverse(log_snr))


def _handed_on(image: jax.Array, before: Process, stage: Stage) -> dict[str, jax.Array]:
    """The low-resolution part of a later stage's request."""
    system, sampling = stage.system, stage.sampling
    if not sampling.truncated:
        return {"low_res": quantize(image) if sampling.quantize else image}
    end = matching_time(before, system, sampling.aug_level)
    # The chains may scale their signal differently (a variance-exploding base): same log-SNR, another alpha.
    alpha_before = before.schedule.alpha_sigma(end)[0]
    alpha_after = system.aug_process.schedule.alpha_sigma(float(sampling.aug_level))[0]
    return {"corrupted": image * jnp.float32(alpha_after / alpha_before)}


def _shared(request: Request) -> dict[str, Any]:
    """What every stage is told: labels and texts."""
    return {name: value for name, value in request.items() if name in ("label", "negative_label") or "text" in name}


def _guide(stage: Stage, params: Any, label: Any) -> Callable[[Denoiser], Denoiser]:
    """A denoiser -> the same, tilted towards labels by the stage's classifier."""

    def guide(denoise: Denoiser) -> Denoiser:
        log_prob = stage.classifier.log_prob(params, label, denoise.process)
        return guidance.classifier(denoise, log_prob, stage.sampling.classifier_scale)

    return guide


def _check_classifier(stage: Stage) -> None:
    """Raise a `ConfigError` unless the stage's classifier looks at images such as the stage draws."""
    if stage.classifier is None:
        return
    drawn, seen = tuple(stage.system.image_shape), tuple(stage.classifier.image_shape)
    if drawn != seen:
        raise ConfigError(f"the classifier looks at images of the shape {seen}, but the model draws {drawn}")


def _check_pair(number: int, before: Stage, after: Stage) -> None:
    """Raise a `ConfigError` unless `after` takes what `before` draws."""
    if not isinstance(after.system, SuperResolution):
        raise ConfigError(
            f"stage {number} of the cascade is the system {after.system.name!r}: every stage after the first must be "
            "'super_resolution'"
        )
    drawn, taken = tuple(before.system.image_shape), tuple(after.system.low_res_shape)
    if drawn != taken:
        raise ConfigError(
            f"stage {number - 1} of the cascade draws images of the shape {drawn}, but stage {number} takes "
            f"low-resolution images of the shape {taken}: check the order and low_res_size"
        )
