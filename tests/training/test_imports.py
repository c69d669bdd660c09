"""Parts of a person's own: known wherever the run is used, named when they have moved or changed."""

from __future__ import annotations

import logging

import pytest

from diffusion_jax import registry, training
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference.run import Run
from diffusion_jax.training import config as configs
from diffusion_jax.training import imports
from diffusion_jax.training.recipes import load_recipe
from tests.training import tiny

PART = """
from diffusion_jax.registry import register

@register("weighting", "{name}")
def {name}(power: float = 0.5):
    return None
"""


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    monkeypatch.setattr(imports, "_GIVEN", [])


def recipe(folder, body="", **sections):
    path = folder / "recipe.py"
    path.write_text(f"{body}\n\ndef get_config():\n    return { ({**tiny.CONFIG, **sections})!r}\n")
    return path


def test_a_recipe_that_registers_parts_is_recorded_as_an_import(tmp_path):
    path = recipe(tmp_path, PART.format(name="in_the_recipe"))
    config = load_recipe(str(path))
    (entry,) = [entry for entry in config["imports"] if "file" in entry and entry["file"] == str(path)]
    assert len(entry["sha256"]) == 16 and "in_the_recipe" in registry.known("weighting")
    configs.claim(tmp_path / "run", config)
    assert configs.read(tmp_path / "run") == config


def test_a_module_that_a_recipe_uses_is_recorded_and_found_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mine_beside.py").write_text(PART.format(name="beside"))
    monkeypatch.syspath_prepend(tmp_path)
    config = load_recipe(str(recipe(tmp_path, "from mine_beside import beside")))
    (entry,) = [entry for entry in config["imports"] if entry.get("module") == "mine_beside"]
    monkeypatch.setattr("sys.path", [place for place in __import__("sys").path if place != str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "mine_beside")
    __import__("importlib").invalidate_caches()
    assert imports.load([entry]) == [entry]  # by its file


def test_a_recipe_without_parts_records_nothing(tmp_path):
    assert load_recipe(str(recipe(tmp_path)))["imports"] == configs.complete(tiny.CONFIG)["imports"]


def test_what_has_moved_or_changed_is_named(tmp_path, caplog, monkeypatch):
    path = tmp_path / "own_part.py"
    path.write_text(PART.format(name="moving"))
    (entry,) = imports.load(imports.entries([str(path)]))
    path.write_text(PART.format(name="moving") + "# another version\n")
    with caplog.at_level(logging.WARNING, "diffusion_jax"):
        imports.load([entry])
    assert f"{path} has changed since the run was made" in caplog.text
    path.unlink()
    monkeypatch.delitem(registry._PARTS["weighting"], "moving")  # as in another process
    with pytest.raises(ConfigError, match=r"there is no file .*own_part.py; say where it is now with --import=FILE"):
        imports.load([entry])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "own_part.py").write_text(PART.format(name="moving"))
    imports.add([str(tmp_path / "elsewhere" / "own_part.py")])
    assert imports.load([entry])[0]["file"] == str(tmp_path / "elsewhere" / "own_part.py")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mine.py", "must be a list"),
        ([3], "must be a list"),
        (["none.py"], "no file .*none.py"),
        (["no.module"], "no module 'no.module'"),
    ],
)
def test_imports_that_are_none(given, message):
    with pytest.raises(ConfigError, match=message):
        imports.load(imports.entries(given))


def test_recipes_given_as_python_objects(tmp_path):
    """They train; config.json says what they were, and the run is opened with them again."""
    config = configs.complete({**tiny.CONFIG, "system": tiny.Bare()})
    configs.claim(tmp_path, config)
    found = configs.read(tmp_path)
    assert found["system"] == {"python_object": f"{tiny.Bare.__module__}.{tiny.Bare.__qualname__}"}
    configs.check_owner(tmp_path, config)
    with pytest.raises(ConfigError, match=r"given to training as a Python object, .*Run.open\(workdir, config=...\)"):
        _ = Run.open(tmp_path).system
    assert Run.open(tmp_path, config=config).system == config["system"]
    with pytest.raises(ConfigError, match="trained with another recipe. There -> here: seed: 1 -> 5"):
        Run.open(tmp_path, config={**config, "seed": 5})


def test_the_library_s_own_recipes_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("mnist.py:base,tiny")["data"]["image_size"]
    with pytest.raises(ConfigError, match=r"no recipe 'mnits.py:base'.*|did you mean 'mnist.py'"):
        load_recipe("mnits.py:base")


def test_a_system_that_is_a_python_object_trains_and_goes_on(tmp_path):
    given = {**tiny.CONFIG, "system": tiny.Bare(), "training": {**tiny.CONFIG["training"], "steps": 2, "checkpoint_every": 1}}
    assert training.train(given, tmp_path)["step"] == 2
    given["training"] = {**given["training"], "steps": 3}
    assert training.train(given, tmp_path)["step"] == 3
    assert Run.open(tmp_path, config=given).params()["point"]["w"].shape == (2,)
