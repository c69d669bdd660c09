"""What statistics cost an evaluation: time over the feature network's forward pass alone, and the peak of memory.

    python -m experiments.benchmarks.evaluation_cost --num=100000
    python -m experiments.benchmarks.evaluation_cost --network=inception --num=40 --size=64 --batch=16 --batches=2 --rounds=5

Random images, made as they are read, go through a network with random weights: the classifier of the bundled data ("small"), or
Inception-v3. Segments of the forward alone, on a batch that is there already, and of the whole pass (reading, placing,
forward, means and covariances in float64) alternate in one run. Then --num images are passed through at once, and the peak of
resident memory is printed beside what it was after a tenth of them: it should not grow.

Measured on 2 CPU cores: peak memory 749 MiB after 10,000 images of 32x32 and 751 MiB after 100,000. The small classifier is
so quick (0.17 ms an image) that reading and summing add 40 % to it in processor time.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import app, flags

from diffusion_jax.evaluation.reference import moments_of
from diffusion_jax.features.classifier import TrainedClassifier
from diffusion_jax.features.extractor import BATCH, Extractor
from diffusion_jax.features.networks import small
from diffusion_jax.features.resizing import preprocessing
from diffusion_jax.inference.sample_sets import SampleSet
from diffusion_jax.models import small_classifier
from diffusion_jax.models.inception import inception_v3

_NETWORK = flags.DEFINE_enum("network", "small", ["small", "inception"], "The feature network.")
_NUM = flags.DEFINE_integer("num", 100_000, "Images of the memory pass.")
_SIZE = flags.DEFINE_integer("size", 32, "Of the images, in pixels.")
_BATCH = flags.DEFINE_integer("batch", BATCH, "Images in a batch; a multiple of what the network takes at a time (64 or 4).")
_BATCHES = flags.DEFINE_integer("batches", 8, "Batches in a segment.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Segments of each kind.")


def make_extractor(name: str, size: int) -> Extractor:
    """A network with random weights."""
    if name == "small":
        network = small_classifier(size, 3, 10)
        return small(TrainedClassifier(network, network.init(jax.random.key(0))))
    network = inception_v3()
    params = jax.jit(network.init)(jax.random.key(0))
    chosen = preprocessing("tf1", network.spec.shape[0])
    return Extractor("inception", chosen, "random", network.dims(), network.apply, params, chunk=4)


def make_images(count: int, size: int) -> SampleSet:
    """Random images that exist only while they are read."""

    def read() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for start in range(0, count, BATCH):
            yield rng.integers(0, 256, (min(BATCH, count - start), size, size, 3), np.uint8)

    return SampleSet("random images", count, (size, size, 3), read)


def peak() -> float:
    """Of this process's resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(works: dict[str, Callable[[], None]]) -> dict[str, dict[str, list[float]]]:
    """Seconds of every work in every round, by both clocks; the first round, which compiles, is left out."""
    clocks = {"wall": time.perf_counter, "processor": time.process_time}  # a busy machine disturbs the second less
    taken: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in works} for clock in clocks}
    for _ in range(_ROUNDS.value + 1):
        for name, work in works.items():
            began = {clock: read() for clock, read in clocks.items()}
            work()
            for clock, read in clocks.items():
                taken[clock][name].append(read() - began[clock])
    return {clock: {name: values[1:] for name, values in rows.items()} for clock, rows in taken.items()}


def main(argv: list[str]) -> None:
    """Measure and print."""
    if len(argv) > 1:
        raise app.UsageError(f"arguments that are not flags: {argv[1:]}")
    extractor, images = make_extractor(_NETWORK.value, _SIZE.value), make_images(_NUM.value, _SIZE.value)
    batch = images.head(_BATCH.value)
    segment = [batch] * _BATCHES.value

    alone = jax.jit(lambda params, x: extractor.function(params, extractor.preprocessing.device(x)))
    params = jax.device_put(extractor.params)
    placed = jax.device_put(extractor.preprocessing.on_host(batch[: extractor.chunk]))

    def forward() -> None:
        """As many images, in the parts that the extractor takes them in."""
        for _ in range(len(segment) * _BATCH.value // extractor.chunk):
            found = alone(params, placed)
        jax.block_until_ready(found)

    def whole() -> None:
        moments_of(extractor, segment)

    for clock, taken in measure({"forward": forward, "whole": whole}).items():
        ratios = [whole / alone for alone, whole in zip(*taken.values(), strict=True)]
        bare, passed = (1e3 * statistics.median(values) / len(segment) / _BATCH.value for values in taken.values())
        sys.stdout.write(
            f"{clock} time: forward alone {bare:.3f} ms an image, with statistics {passed:.3f} ms: ratio {passed / bare:.3f} "
            f"of medians, {statistics.median(ratios):.3f} median of pairs ({min(ratios):.3f} to {max(ratios):.3f})\n"
        )
    tenth = dataclasses.replace(images, count=max(_NUM.value // 10, 1))
    moments_of(extractor, tenth.batches(BATCH, tenth.count))
    before = peak()
    moments_of(extractor, images.batches(BATCH))
    sys.stdout.write(f"peak memory {before:.0f} MiB after {tenth.count} images, {peak():.0f} MiB after {images.count}\n")


if __name__ == "__main__":
    app.run(main)
