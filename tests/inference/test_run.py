"""Runs: each thing is read or built once; parameters lie on a mesh as in training, and several processes draw as one does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image, ImageFile

from diffusion_jax import data, evaluation
from diffusion_jax.data import config as data_config
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.evaluation.results import flat
from diffusion_jax.inference import Generator, Run, find
from diffusion_jax.inference.requests import ask
from diffusion_jax.systems import from_config
from diffusion_jax.training import config as configs
from diffusion_jax.training import given_weights
from tests import processes
from tests.tiny_systems import NETWORK, PROCESS, make_run, runs  # noqa: F401

WIDE = {**NETWORK, "channels": 32, "groups": 8}  # whose kernels are worth splitting


def test_what_a_run_is_made_of_is_made_once(runs):  # noqa: F811
    run = Run.open(runs["base"], {"sampling.steps": 3})
    assert run.config["sampling"]["steps"] == 3 and run.steps() == [1]
    assert run.system is run.system and run.data is run.data and run.pipeline("test") is run.pipeline("test")
    params, step = run.load()
    assert step == 1 and run.params() is params and run.params(weights="raw") is not params
    assert run.identity() == Run(runs["base"]).identity() and len(run.identity()["params"]) == 64
    with pytest.raises(CheckpointError, match=r"has no weights 'emma' \(it has: ema, raw, "):
        run.params(weights="emma")


def test_a_run_draws_what_it_is_asked_for(runs):  # noqa: F811
    run = Run.open(runs["base"])
    drawn, again = run.sample(labels=[3, 7], guidance=2.0), run.sample(3, labels=[3, 7], guidance=2.0)
    assert drawn.shape == (2, 8, 8, 1) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, again[:2])
    with pytest.raises(ConfigError, match="label 10 is out of range"):
        run.sample(labels=[10])


@pytest.fixture
def opened(monkeypatch):
    """How often a source of each split was built."""
    counts, build = Counter(), data_config.build

    def counting(kind, config, **defaults):
        counts[config.get("split", "train")] += kind == "source"
        return build(kind, config, **defaults)

    monkeypatch.setattr(data_config, "build", counting)
    return counts


def test_an_evaluation_opens_its_data_once_and_decodes_each_image_at_most_twice(tmp_path, monkeypatch, opened):
    """80 images, their verification included, over training and held-out images, classifier, features and pictures."""
    rng, decoded, load = np.random.default_rng(0), Counter(), ImageFile.ImageFile.load
    for index in range(80):
        path = tmp_path / "images" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    config = configs.complete({
        "system": {"process": PROCESS, "network": NETWORK, "conditioners": {"labels": {"num_classes": 2}}},
        "data": {"source": {"name": "folder", "path": str(tmp_path / "images"), "test_fraction": 0.25}, "image_size": 8,
                 "channels": 3, "batch_size": 4},
        "sampling": {"solver": "ddim", "steps": 1},
    })  # fmt: skip
    params = jax.jit(from_config(config).init)(jax.random.key(0))["network"]
    given_weights.start_run(config, tmp_path / "run", params)

    def counting(image):
        decoded[image.filename] += bool(image.tile and "/images/" in str(image.filename))  # no tiles: decoded already
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    settings = evaluation.Settings(num=20, batch_size=20, classifier_steps=2, kid_subset_size=10)
    found = evaluation.evaluate_run(tmp_path / "run", settings=settings)
    assert {"held_out_loss", "frechet_distance", "recall", "agreement", "neighbour_distance_ratio"} <= set(found)
    counts = [count for count in decoded.values() if count]
    assert len(counts) == 80 and max(counts) <= 2 and opened == {"train": 1, "test": 1}


@pytest.mark.slow
def test_each_split_of_digits_is_prepared_once(runs, tmp_path, monkeypatch, opened):  # noqa: F811
    fitted, fit = Counter(), data.transforms.Fit.__call__

    def counting(self, image):
        fitted[image.tobytes()] += 1
        return fit(self, image)

    monkeypatch.setattr(data.transforms.Fit, "__call__", counting)
    evaluation.evaluate_run(runs["base"], tmp_path, evaluation.Settings(num=10, batch_size=10, classifier_steps=2))
    assert max(fitted.values()) == 1 and sum(fitted.values()) == 1797 and opened == {"train": 1, "test": 1}


@pytest.mark.slow
def test_under_fsdp_no_parameter_is_whole_on_a_device(tmp_path):
    """Not when restored, and not when drawn with; what is drawn is what every device with all parameters draws."""
    workdir = make_run(tmp_path / "wide", network=WIDE)
    whole, split = find([workdir]), find([workdir], mesh={"data": 2, "fsdp": 4})
    generators = []
    for each in (whole, split):
        params, _ = each.load()
        generators.append(Generator(each.cascade, params, batch_size=8))
    placed = [leaf for leaf in jax.tree.leaves(generators[1]._params) if leaf.size >= 1024]
    assert len(placed) > 5
    for leaf in placed:
        assert max(shard.data.size for shard in leaf.addressable_shards) == leaf.size // 4
    settings = [each.settings(*each.load())[0]["params"] for each in (whole, split)]
    assert settings[0] == settings[1]  # the same identity, wherever they lie
    asked, _ = ask(whole.cascade.conditioners, whole.runs[0].data)
    drawn = [next(generator(range(8), asked)).images[-1].astype(int) for generator in generators]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


def _start(program: str, devices: int, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"diffusion_jax.{program}", *arguments]
    return subprocess.Popen(
        command, env=processes.environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(started: list[subprocess.Popen]) -> None:
    said = [process.communicate(timeout=500)[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said


@pytest.mark.slow  # ten programs
def test_two_processes_draw_and_measure_as_one_does(tmp_path):
    workdir = make_run(tmp_path / "wide", network=WIDE)
    arguments = {
        "sample": ["--num=20", "--batch_size=8", "--guidance=2"],
        "evaluate": ["--num=24", "--batch_size=8", "--classifier_steps=20", "--bits_per_dim=8", "--noreport"],
    }
    for program, more in arguments.items():
        given = [f"--workdir={workdir}", "--mesh=data=2,fsdp=4", *more]
        one = _start(program, 8, *given, f"--out={tmp_path / program}1")
        _finish([one])
        joined = [*given, f"--coordinator=127.0.0.1:{random.Random().randint(20000, 60000)}", "--num_processes=2"]
        _finish([_start(program, 4, *joined, f"--process_id={i}", f"--out={tmp_path / program}2") for i in (0, 1)])
        joined[-2] = f"--coordinator=127.0.0.1:{random.Random().randint(20000, 60000)}"
        refused = [_start(program, 4, *joined, f"--process_id={i}", f"--out={workdir}") for i in (0, 1)]
        said = [process.communicate(timeout=100)[1] for process in refused]  # a folder of other files: both end at once
        assert [process.returncode for process in refused] == [2, 2] and all(f"{program}: error: " in text for text in said)
        assert all("choose another folder" in text for text in said)
    for index in range(20):
        one, two = ((tmp_path / f"sample{n}" / f"{index:06d}.png").read_bytes() for n in (1, 2))
        assert one == two
    one, two = (flat(json.loads((tmp_path / f"evaluate{n}" / "metrics.json").read_text())) for n in (1, 2))
    assert one.keys() == two.keys() and {"frechet_distance", "agreement", "bits_per_dim"} <= one.keys()
    for name, value in one.items():  # sums over processes may differ in the last digit of float32
        assert two[name] == (value if name.startswith("settings") else pytest.approx(value, rel=1e-6)), name
