"""Cascades: trained stages in order, each drawing at a higher resolution from what the one before it drew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.rng import named
from diffusion_jax.sampling import guidance
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Denoises, Samples, Sampling, ability, check_request
from diffusion_jax.systems.base import Request
from diffusion_jax.systems.conditioners import Conditioner


class Stage(NamedTuple):
    """A system that samples, how to sample it, and a system that classifies, whose gradient it follows, if any."""

    system: Any
    sampling: Sampling
    classifier: Any = None


class StageParams(NamedTuple):
    """The parameters of a stage, {group: tree} each.

    Attributes:
      own: of its system.
      classifier: of the system whose gradient it follows; None without.
      frozen: {name: {group: tree}} of what its codec reads.
    """

    own: Any
    classifier: Any = None
    frozen: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Stages in order of resolution; one stage alone is a cascade too.

    Each stage after the first takes the previous stage's output, at its own augmentation level s, with its own solver,
    steps and guidance. Not truncated: the previous stage is run to the end, clipped, optionally rounded to what the data
    have, and noised to s. Truncated: the previous stage's chain is stopped at the noise of s and fed as it is.

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
            ability(stage.system, Samples).check_sampling(stage.sampling)
            _check_classifier(stage)
        for number, (before, after) in enumerate(zip(self.stages, self.stages[1:], strict=False), start=2):
            _check_pair(number, before, after)
        for number in range(len(self.stages)):
            self._check_end(number)
        meanings: dict[str, set[Any]] = {}
        for each in self._every_conditioner:
            meanings.setdefault(each.name, set()).add(each.meaning)
        for name, found in meanings.items():
            if len(found) > 1:
                what = " and ".join(sorted(map(str, found)))
                raise ConfigError(f"the stages of the cascade disagree on their {name}: {what}")

    @property
    def spec(self) -> Spec:
        """What the last stage draws."""
        return self.stages[-1].system.spec

    @property
    def _every_conditioner(self) -> list[Conditioner]:
        """Of the stages and their classifiers, but for those that an earlier stage serves."""
        found: list[Conditioner] = []
        for number, stage in enumerate(self.stages):
            found += [each for each in stage.system.conditioners if not (number and each.takes_previous)]
            found += [] if stage.classifier is None else [stage.classifier.labels]
        return found

    @property
    def conditioners(self) -> list[Conditioner]:
        """What a request of the whole cascade consists of, each kind once."""
        return list({each.name: each for each in reversed(self._every_conditioner)}.values())[::-1]

    def request(self, batch: Any) -> dict[str, Any]:
        """Return what is asked for to sample what is like a batch."""
        return {name: value for each in self.conditioners for name, value in each.request(batch).items()}

    def check_request(self, request: Request) -> None:
        """Raise a `ConfigError` if conditioning is missing, of a wrong shape or out of range."""
        check_request(self.stages[0].system, request)
        for each in self._every_conditioner:
            each.check_request(request)
        guided = [stage.system for stage in self.stages if stage.sampling.guidance != 1]
        read = {name for system in guided for each in system.conditioners for name in each.columns}
        if "negative_label" in request and "negative_label" not in read:
            raise ConfigError(
                "negative labels are what classifier-free guidance leads away from: set guidance above 1, on a model with "
                "classes"
            )

    def sample(self, params: Sequence[StageParams], key: jax.Array, request: Request, indices: jax.Array) -> list[jax.Array]:
        """Draw examples from every stage.

        Args:
          params: of each stage.
          key: of the run; example i is a function of (key, indices[i]) and its request alone.
          request: what the conditioners of all stages read, [N, ...] each.
          indices: int [N].

        Returns:
          What each stage draws, floating [N, ...] in its model's space. Before a truncated stage this is what the stopped
          chain took the example to be: with noise.
        """
        outputs: list[jax.Array] = []
        for number, (stage, weights) in enumerate(zip(self.stages, params, strict=True)):
            wanted = dict(request)
            if number:
                before = self.stages[number - 1]
                decode = lambda x, q, b=before, w=params[number - 1]: b.system.codec.decode(w.frozen, x, quantize=q)  # noqa: E731
                wanted = {**_shared(request, stage), **_handed_on(outputs[-1], before, stage, decode)}
            end, more = self._end(number), {}
            if end > 0:
                more["end"] = end
            if stage.classifier is not None:
                more["guide"] = _guide(stage, weights.classifier, request["label"])
            key_of_stage = named(key, "stage", self.first + number)
            outputs.append(stage.system.sample(weights.own, key_of_stage, wanted, indices, stage.sampling, **more))
        return outputs

    def _end(self, number: int) -> float:
        """The time at which a stage's chain stops: 0, or the noise level that a truncated next stage wants."""
        if number + 1 == len(self.stages) or not self.stages[number + 1].sampling.truncated:
            return 0.0
        after = self.stages[number + 1]
        return matching_time(_process(self.stages[number]), previous_of(after.system), after.sampling.aug_level)

    def _check_end(self, number: int) -> None:
        stage, end = self.stages[number], self._end(number)
        if end and end >= stage.sampling.build_grid()(_process(stage))[0]:
            raise ConfigError(
                f"stage {number + 2} of the cascade is truncated at aug_level "
                f"{self.stages[number + 1].sampling.aug_level:g}, as noisy as where stage {number + 1} starts: "
                "lower aug_level"
            )


def previous_of(system: Samples) -> Any:
    """Return the conditioner through which a system takes an earlier stage's output; None if it takes none."""
    return next((each for each in system.conditioners if each.takes_previous), None)


def _process(stage: Stage) -> Process:
    """What the stage is sampled from, on the schedule that its sampling asks for."""
    return stage.sampling.rebind(ability(stage.system, Denoises, "an earlier stage of the cascade").process)


def matching_time(before: Process, after: Any, level: float) -> float:
    """Return the time at which an earlier stage's process is as noisy as a later one's conditioner at `level`."""
    if level == 0:
        return 0.0
    log_snr = after.aug_process.schedule.log_snr(float(level))
    return float(before.schedule.inverse(log_snr))


def _handed_on(image: jax.Array, before: Stage, after: Stage, decode: Callable[[Any, bool], Any]) -> dict[str, jax.Array]:
    """The part of a later stage's request that is the earlier stage's output."""
    sampling, taken = after.sampling, previous_of(after.system)
    if not sampling.truncated:
        return {"low_res": decode(image, sampling.quantize)}
    process = _process(before)
    # The chains may scale their signal differently (a variance-exploding base): same log-SNR, another alpha.
    alpha_before = process.schedule.alpha_sigma(matching_time(process, taken, sampling.aug_level))[0]
    alpha_after = taken.aug_process.schedule.alpha_sigma(float(sampling.aug_level))[0]
    return {"corrupted": image * jnp.float32(alpha_after / alpha_before)}


def _shared(request: Request, stage: Stage) -> dict[str, Any]:
    """What a later stage reads of the cascade's request."""
    read = {name for each in stage.system.conditioners if not each.takes_previous for name in each.columns}
    return {name: value for name, value in request.items() if name in read}


def _guide(stage: Stage, params: Any, label: Any) -> Callable[[Denoiser], Denoiser]:
    """A denoiser -> the same, led towards labels by the gradient of the stage's classifier."""

    def guide(denoise: Denoiser) -> Denoiser:
        log_prob = stage.classifier.log_prob(params, label, denoise.process)
        return guidance.classifier(denoise, log_prob, stage.sampling.classifier_scale)

    return guide


def _check_classifier(stage: Stage) -> None:
    """Raise a `ConfigError` unless the stage's classifier looks at what the stage draws."""
    if stage.classifier is None:
        return
    ability(stage.system, Denoises)
    if stage.system.spec != stage.classifier.spec:
        raise ConfigError(f"the classifier looks at data of {stage.classifier.spec}, but the model draws {stage.system.spec}")


def _check_pair(number: int, before: Stage, after: Stage) -> None:
    """Raise a `ConfigError` unless `after` takes what `before` draws."""
    taken = previous_of(after.system)
    if taken is None:
        raise ConfigError(
            f"stage {number} of the cascade takes no earlier stage's images: every stage after the first must be conditioned "
            "on 'low_res'"
        )
    if before.system.spec.shape != tuple(taken.shape):
        raise ConfigError(
            f"stage {number - 1} of the cascade draws images of the shape {before.system.spec.shape}, but stage {number} takes "
            f"low-resolution images of the shape {tuple(taken.shape)}: check the order and the size of low_res"
        )
