"""The samples of an evaluation, drawn to disk so that one that was interrupted goes on, and read from there."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import identity
from diffusion_jax.inference.cascade import Cascade, StageParams
from diffusion_jax.inference.generator import Generator
from diffusion_jax.inference.requests import Requests
from diffusion_jax.inference.sample_sets import SampleSet, open_samples
from diffusion_jax.inference.samples import SampleFolder

_LOG = logging.getLogger(__name__)

EARLIER = "earlier_stages"
"""Where images of a cascade's earlier stages lie, beside those of the cases that share them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """The finished images of every stage of a cascade, to be drawn below a folder; what is there already is not drawn again.

    A stage before a truncated one never finishes in the cascade: it is drawn once more by itself. Where every later stage
    takes finished images of 8 bits (`quantize`), the stages are drawn one after the other from what is stored, and the
    earlier ones once for all settings of the later, beside the folder (`EARLIER`).

    Attributes:
      cascade, params: what is sampled.
      requests: the conditioning.
      folder: where.
      settings: what determines the samples, as JSON data.
      num: how many samples of each stage.
      batch_size: samples at a time.
      seed: of all noise.
    """

    cascade: Cascade
    params: Sequence[StageParams]
    requests: Requests
    folder: Path
    settings: dict[str, Any]
    num: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "_generators", {})
        object.__setattr__(self, "_stopped", threading.Event())

    @property
    def _in_turn(self) -> bool:
        later = self.cascade.stages[1:]
        return bool(later) and all(stage.sampling.quantize and not stage.sampling.truncated for stage in later)

    def _passes(self) -> list[range]:
        """The stages that each pass over the cascade shows, in order."""
        stages, found = self.cascade.stages, [0]
        for last in range(len(stages)):
            if self._in_turn or last + 1 == len(stages) or stages[last + 1].sampling.truncated:
                found.append(last + 1)  # else the pass over a later stage brings this one along
        return [range(start, stop) for start, stop in zip(found, found[1:], strict=False)]

    def _generator(self, shown: range) -> Generator:
        if shown not in self._generators:
            first, last = (shown.start if self._in_turn else 0), shown.stop
            chain = Cascade(self.cascade.stages[first:last], first=first)
            self._generators[shown] = Generator(
                chain, self.params[first:last], seed=self.seed, batch_size=min(self.batch_size, self.num), every_stage=True
            )
        return self._generators[shown]

    def _place(self, stage: int) -> tuple[Path, dict[str, Any]]:
        """Where the images of a stage lie, and their settings."""
        if not self._in_turn:
            return self.folder / f"stage{stage + 1}", self.settings
        own = {**self.settings, "stages": self.settings["stages"][: stage + 1]}
        last = stage == len(self.cascade.stages) - 1
        return (self.folder / f"stage{stage + 1}" if last else self.folder.parent / EARLIER / identity.digest(own)), own

    def stop(self) -> None:
        """Draw no more batches, where another thread draws; what was drawn is kept on disk."""
        self._stopped.set()

    def __call__(self) -> list[SampleSet]:
        """Draw what is missing, and return the images of every stage."""
        found: list[SampleSet] = []
        for shown in self._passes():
            with contextlib.ExitStack() as stack:
                folders = [stack.enter_context(self._folder(stage)) for stage in shown]
                missing = sorted(set().union(*(each.missing(self.num) for each in folders)))
                if 0 < len(missing) < self.num:
                    _LOG.info("%d of %d samples are there already", self.num - len(missing), self.num)
                for indices, images in self._drawn(shown, missing, found):
                    for each, stage in zip(folders, images[-len(shown) :], strict=True):
                        each.add(indices, stage)
                    if self._stopped.is_set():
                        return []
                for each in folders:
                    each.finish(self.num, self.requests.labels(self.num))
            found += [open_samples(self._place(stage)[0]) for stage in shown]
        several = len(found) > 1
        return [
            dataclasses.replace(each, name=f"stage {number}" if several else "the samples")
            for number, each in enumerate(found, start=1)
        ]

    def _folder(self, stage: int) -> SampleFolder:
        place, settings = self._place(stage)
        return SampleFolder(place, settings, "npz", self.cascade.stages[stage].system.spec)

    def _drawn(self, shown: range, missing: list[int], found: list[SampleSet]) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        if not missing:
            return
        requests = self.requests
        if self._in_turn and shown.start:
            stored = np.concatenate(list(found[-1].batches(self.num, self.num)))
            requests = Requests({**requests.columns, "low_res": stored})
        for drawn in self._generator(shown)(missing, requests):
            yield drawn.indices, drawn.images
