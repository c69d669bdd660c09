"""Configurations: defaults, mistakes, differences, who owns a directory, recipes."""

from __future__ import annotations

import json

import pytest
from ml_collections import ConfigDict

from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.registry import known
from diffusion_jax.training import config as configs
from diffusion_jax.training.recipes import load_recipe, split_overrides
from tests.training import tiny


def test_a_recipe_over_the_defaults():
    found = configs.complete(ConfigDict({"system": {"name": "toy"}, "data": {"source": "noise"}, "training": {"steps": 5}}))
    assert found["training"]["steps"] == 5 and found["training"]["log_every"] == 50
    assert found["optimizer"]["clip_norm"] == 1.0 and found["training"]["ema"]  # on by default
    assert configs.complete(found) == found == json.loads(json.dumps(found))
    assert configs.DEFAULTS["training"]["steps"] == 100_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainning": {}}, "section: unknown 'trainning'; did you mean 'training'"),
        ({"training": {"stpes": 3}}, "training has no field 'stpes'; did you mean 'steps'"),
        ({"mesh": {"fdsp": 3}}, "mesh has no field 'fdsp'; did you mean 'fsdp'"),
        ({"version": 1}, "version must be 2.*got 1"),
        ({"imports": "mine.py"}, "imports must be a list"),
        ({"imports": ["no.such.module"]}, "there is no module 'no.such.module'"),
        ({"imports": ["none.py"]}, "there is no file .*/none.py"),
        ({"training": {"trainable": "lora"}}, "training: trainable must be a list of texts"),
        ({"system": {}}, "needs a section 'system'"),
        ({"training": 3}, "'training' must be a mapping"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"training": {"steps": 1.5}}, "training: steps must be a whole number at least 1, got 1.5"),
        ({"training": {"steps": True}}, "training: steps"),
        ({"training": {"keep_last": 1}}, "training: keep_last must be a whole number at least 2"),
        ({"training": {"grid_every": -1}}, "training: grid_every"),
        ({"training": {"ema": []}}, "training.ema must be a list"),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(ConfigError, match=message):
        configs.complete({**tiny.CONFIG, **overrides})


def test_overrides():
    config = configs.apply_overrides(tiny.config(), {"training.steps": 3, "data.source.size": 9})
    assert config["training"]["steps"] == 3 and config["data"]["source"] == {"name": "noise", "size": 9}
    assert tiny.config()["training"]["steps"] == 10
    with pytest.raises(ConfigError, match="no 'trainig.steps'; did you mean 'training'"):
        configs.apply_overrides(tiny.config(), {"trainig.steps": 3})
    with pytest.raises(ConfigError, match="'ema' is .* not a section"):
        configs.apply_overrides(tiny.config(), {"training.ema.decay": 3})


def test_differences():
    before = tiny.config()
    changes = {"optimizer__learning_rate": 0.5, "training__steps": 20, "mesh__fsdp": 8, "data__source__size": 5}
    after = tiny.config(**changes)
    assert configs.difference(before, after) == ["data.source.size: absent -> 5", "optimizer.learning_rate: 0.001 -> 0.5"]
    assert "training.steps: 10 -> 20" in configs.difference(before, after, free=True)
    assert configs.difference(before, before, free=True) == []


def finish(workdir, step, config):
    """What a finished checkpoint looks like from outside."""
    meta = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"step": step, "config": config}))


def test_a_directory_with_checkpoints_keeps_its_configuration(tmp_path):
    configs.claim(tmp_path, tiny.config())
    finish(tmp_path, 3, tiny.config())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="another configuration.*seed: 1 -> 2"):
        configs.claim(tmp_path, tiny.config(seed=2))
    assert (tmp_path / "config.json").read_bytes() == before
    (tmp_path / "config.json").unlink()  # the checkpoint has a copy
    with pytest.raises(CheckpointError, match="another configuration.*seed: 1 -> 2"):
        configs.claim(tmp_path, tiny.config(seed=2))
    configs.claim(tmp_path, tiny.config(training__steps=99))
    assert configs.read(tmp_path)["training"]["steps"] == 99


def test_a_directory_without_checkpoints_is_anyones(tmp_path):
    configs.claim(tmp_path, tiny.config())
    configs.claim(tmp_path, tiny.config(seed=2))
    assert configs.read(tmp_path)["seed"] == 2


def test_runs_of_another_release_are_refused(tmp_path):
    old = {key: value for key, value in tiny.config().items() if key != "version"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    finish(tmp_path, 3, old)
    for read in (lambda: configs.read(tmp_path), lambda: configs.check_owner(tmp_path, tiny.config())):
        with pytest.raises(CheckpointError, match=r"another release's layout \(version 0.1.0's, here 2\).*train it anew"):
            read()
    (tmp_path / "config.json").unlink()  # the checkpoints say so too
    with pytest.raises(CheckpointError, match="another release's layout"):
        configs.check_owner(tmp_path, tiny.config())


def test_imports(tmp_path, monkeypatch):
    """A file beside the recipe registers a part, once, for the recipe and for the run's config.json, from any directory."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.py").write_text(
        "from diffusion_jax.registry import register\n\n@register('weighting', 'mine')\ndef mine():\n    return None\n"
    )
    (tmp_path / "recipe.py").write_text(
        f"def get_config():\n    return {{**{tiny.CONFIG!r}, 'imports': ['parts/mine.py', 'json']}}\n"
    )
    config = load_recipe(str(tmp_path / "recipe.py"))
    assert [entry.get("module", entry["file"]) for entry in config["imports"]] == [str(tmp_path / "parts" / "mine.py"), "json"]
    assert "mine" in known("weighting") and all(len(entry["sha256"]) == 16 for entry in config["imports"])
    configs.claim(tmp_path / "run", config)
    monkeypatch.chdir("/")
    assert configs.read(tmp_path / "run") == config
    assert configs.difference(config, {**config, "imports": []}) == []  # files may move
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_library")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        configs.complete({**tiny.CONFIG, "imports": [str(broken)]})


def test_an_optimizer_for_each_group():
    found = configs.complete({**tiny.CONFIG, "optimizer": {"network": {"learning_rate": 0.5}, "critic": {"name": "sgd"}}})
    assert found["optimizer"]["network"] == {**configs.DEFAULTS["optimizer"], "learning_rate": 0.5}
    assert found["optimizer"]["critic"]["name"] == "sgd" and set(found["optimizer"]) == {"network", "critic"}
    assert configs.complete(found) == found


def test_fields_that_the_defaults_gained_do_not_stop_a_run(tmp_path):
    old = tiny.config()
    del old["training"]["eval_every"], old["mesh"]["tensor"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    finish(tmp_path, 3, old)
    configs.check_owner(tmp_path, tiny.config())


def test_a_damaged_configuration(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(CheckpointError, match="config.json, the configuration of a run, cannot be read"):
        configs.read(tmp_path)


def test_recipes(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "def get_config(variant='base'):\n"
        "    if variant != 'base':\n        raise ValueError(f'recipe.py has the variant base, not {variant!r}')\n"
        f"    return {tiny.CONFIG!r}\n"
    )
    assert load_recipe(f"{path}:base", {"training.steps": 7})["training"]["steps"] == 7
    (tmp_path / "plain").mkdir()
    plain = tiny.recipe(tmp_path / "plain")
    assert load_recipe(str(plain)) == configs.complete(tiny.config(imports=["tests.training.tiny"]))
    for spec, message in [
        (tmp_path / "other.py", "no recipe"),
        (f"{path}:bsae", "has the variant base, not 'bsae'"),
        (f"{plain}:base", "has no variants"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_recipe(str(spec))
    with pytest.raises(ConfigError, match="no field 'stpes'"):
        load_recipe(str(tmp_path / "recipe.py"), {"training.stpes": 7})
    with pytest.raises(ConfigError, match="needs a value"):
        split_overrides(["--config.training.steps"])
