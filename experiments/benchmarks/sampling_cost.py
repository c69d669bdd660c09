"""What writing costs a sampler: time per image with and without files, and the ratio.

    python -m experiments.benchmarks.sampling_cost --num=512
    python -m experiments.benchmarks.sampling_cost --workdir=DIR --num=2000 --format=npz

Without --workdir a fresh network of the size of the MNIST base is sampled; its images are noise, which is the dearest to
compress. The first batch, which compiles, is left out. Rounds alternate, and the median of their ratios is printed: on a
shared machine a single pass of each says little. There, look at the processor time of the whole process, which other
jobs disturb less.

Measured on 2 CPU cores (--num=512): with files over without, 0.989 in processor time; in wall time 0.944, the median of rounds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import app, flags

from diffusion_jax.inference import Cascade, Generator, Requests, SampleFolder, Stage, StageParams, find
from diffusion_jax.inference.generator import Drawn
from diffusion_jax.spec import Spec
from diffusion_jax.systems import Diffusion, Sampling

_WORKDIR = flags.DEFINE_list("workdir", [], "Trained runs, the stages of a cascade; a fresh network if left out.")
_NUM = flags.DEFINE_integer("num", 512, "Images a round.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images at a time.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of each kind.")
_FORMAT = flags.DEFINE_enum("format", "png", ["png", "npz"], "What is written.")


def fresh() -> tuple[Cascade, list]:
    """An untrained class-conditional network of the size of the MNIST base, 16x16."""
    network = {"name": "unet", "channels": 32, "multipliers": (1, 2, 2), "num_res_blocks": 1,
               "attention_resolutions": (4,), "num_heads": 2, "groups": 8}  # fmt: skip
    process = {"schedule": "cosine_continuous", "prediction": "v"}
    labels = {"labels": {"num_classes": 10}}
    system = Diffusion(spec=Spec.image(16, 1), process=process, network=network, conditioners=labels)
    sampling = Sampling(solver="dpmpp_2m", steps=25, guidance=2.0)
    return Cascade([Stage(system, sampling)]), [StageParams(jax.jit(system.init)(jax.random.key(0)))]


def seconds_per_image(drawn: Iterator[Drawn], use: Callable[[Drawn], None], finish: Callable[[], None]) -> np.ndarray:
    """(wall, processor) time per image after the first batch, until the last one is where it belongs."""
    clocks = lambda: np.array([time.perf_counter(), time.process_time()])  # noqa: E731
    use(next(drawn))
    began, count = clocks(), 0
    for part in drawn:
        use(part)
        count += len(part.indices)
    finish()
    return (clocks() - began) / count


def measure(generator: Generator, num: int, rounds: int, format: str) -> np.ndarray:
    """Seconds per image, [rounds, (kept in memory, written to disk), (wall, processor)]."""
    rows = Requests({name: x for each in generator.cascade.conditioners for name, x in each.default().items()})
    measured = []
    for _ in range(rounds):
        kept = seconds_per_image(generator(range(num), rows), lambda part: None, lambda: None)
        with tempfile.TemporaryDirectory() as path, SampleFolder(path, {}, format, generator.cascade.spec) as folder:
            write = lambda part: folder.add(part.indices, part.images[-1])  # noqa: B023, E731  (used within the round)
            measured.append([kept, seconds_per_image(generator(range(num), rows), write, folder.flush)])
    return np.array(measured)


def main(_: list[str]) -> None:
    """Print both costs and their ratio."""
    if _WORKDIR.value:
        runs = find(_WORKDIR.value)
        cascade, params = runs.cascade, runs.load()[0]
    else:
        cascade, params = fresh()
    generator = Generator(cascade, params, batch_size=_BATCH.value)
    measured = measure(generator, _NUM.value, _ROUNDS.value, _FORMAT.value)
    (kept, written), ratio = np.median(measured, 0), np.median(measured[:, 1] / measured[:, 0], 0)
    sys.stdout.write(
        "                           wall    processor   (medians)\n"
        f"sampled only          {1e3 * kept[0]:9.2f} {1e3 * kept[1]:12.2f}   ms per image\n"
        f"sampled and written   {1e3 * written[0]:9.2f} {1e3 * written[1]:12.2f}   ms per image ({_FORMAT.value})\n"
        f"ratio                 {ratio[0]:9.3f} {ratio[1]:12.3f}\n"
    )


if __name__ == "__main__":
    app.run(main)
