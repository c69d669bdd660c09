"""The samples of a point, drawn to disk so that an interrupted evaluation goes on, and read from there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.inference.cascade import Cascade
from diffusion_jax.inference.generator import Generator
from diffusion_jax.inference.requests import Requests, requests_of
from diffusion_jax.inference.runs import Runs
from diffusion_jax.inference.sample_sets import SampleSet, open_samples
from diffusion_jax.inference.samples import SampleFolder

_LOG = logging.getLogger(__name__)

EARLIER = "earlier_stages"
"""Where images of a cascade's earlier stages lie, beside those of the points that share them."""


def requests(runs: Runs, num: int) -> Requests:
    """Classes in turn; where more is needed (low-resolution images, texts), that of held-out images, with their classes."""
    first, classes = runs.cascade.stages[0].system, runs.cascade.num_classes
    columns = requests_of(first, runs.pipeline(0, "test"), num) if getattr(first, "needs_data", False) else {}
    in_turn = (lambda indices: (indices % classes).astype(np.int32)) if classes and "label" not in columns else None
    return Requests(columns, in_turn)


def draw_stages(
    runs: Runs,
    params: Sequence[Any],
    rows: Requests,
    folder: Path,
    settings: dict[str, Any],
    *,
    num: int,
    batch_size: int,
    seed: int,
) -> list[SampleSet]:
    """The finished images of every stage, below a folder; what is there already is not drawn again.

    A stage before a truncated one never finishes in the cascade: it is drawn once more by itself. Where every later stage
    takes finished images of 8 bits (`quantize`), the stages are drawn one after the other from what is stored, and the
    earlier ones once for all settings of the later, beside the folder (`EARLIER`).

    Args:
      settings: what determines the samples, as JSON data.
    """
    stages = runs.cascade.stages
    if len(stages) > 1 and all(stage.sampling.quantize and not stage.sampling.truncated for stage in stages[1:]):
        return _draw_in_turn(runs, params, rows, folder, settings, num=num, batch_size=batch_size, seed=seed)
    found: list[SampleSet] = []
    for last in range(len(stages)):
        if last + 1 < len(stages) and not stages[last + 1].sampling.truncated:
            continue  # the pass over a later stage brings this one along
        shown = range(len(found), last + 1)
        with contextlib.ExitStack() as stack:
            folders = [
                stack.enter_context(
                    SampleFolder(folder / f"stage{stage + 1}", settings, "npz", stages[stage].system.image_shape)
                )
                for stage in shown
            ]
            missing = sorted(set().union(*(each.missing(num) for each in folders)))
            if 0 < len(missing) < num:
                _LOG.info("%d of %d samples are there already", num - len(missing), num)
            if missing:
                chain, size = Cascade(stages[: last + 1]), min(batch_size, num)
                generator = Generator(chain, params[: last + 1], seed=seed, batch_size=size, every_stage=True)
                for drawn in generator(missing, rows):
                    for each, stage in zip(folders, shown, strict=True):
                        each.add(drawn.indices, drawn.images[stage])
            for each in folders:
                each.finish(num, rows.labels(num))
        found += [open_samples(folder / f"stage{stage + 1}") for stage in shown]
    return _named(found)


def _draw_in_turn(
    runs: Runs,
    params: Sequence[Any],
    rows: Requests,
    folder: Path,
    settings: dict[str, Any],
    *,
    num: int,
    batch_size: int,
    seed: int,
) -> list[SampleSet]:
    """Each stage from the stored images of the one before; the earlier stages lie where other points find them."""
    stages, found = runs.cascade.stages, []
    for number, stage in enumerate(stages):
        own = {**settings, "stages": settings["stages"][: number + 1]}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        last = number == len(stages) - 1
        place = folder / f"stage{number + 1}" if last else folder.parent / EARLIER / digest
        with SampleFolder(place, own, "npz", stage.system.image_shape) as samples:
            missing = samples.missing(num)
            if missing:
                wanted = rows
                if number:
                    shared = {name: column for name, column in rows.columns.items() if name != "low_res"}
                    wanted = Requests({**shared, "low_res": np.concatenate(list(found[-1].batches(num, num)))}, rows.rule)
                chain = Cascade([stage], first=number)
                generator = Generator(chain, params[number : number + 1], seed=seed, batch_size=min(batch_size, num))
                for drawn in generator(missing, wanted):
                    samples.add(drawn.indices, drawn.images[-1])
            samples.finish(num, rows.labels(num))
        found.append(open_samples(place))
    return _named(found)


def _named(found: Sequence[SampleSet]) -> list[SampleSet]:
    return [dataclasses.replace(each, name=f"stage {number}" if len(found) > 1 else "the samples")
            for number, each in enumerate(found, start=1)]  # fmt: skip
