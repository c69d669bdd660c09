"""What training reads and never changes: found, checked, sharded, recorded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from diffusion_jax import training
from diffusion_jax.errors import CheckpointError, ConfigError
from diffusion_jax.registry import register
from diffusion_jax.training import frozen
from diffusion_jax.training.checkpoints import restore_weights
from tests.training import tiny


@register("system", "pupil")
@dataclasses.dataclass(frozen=True)
class Pupil(tiny.Toy):
    """Learns what its teacher predicts; starts as the teacher, or else anew."""

    anew: bool = False

    needs = ("teacher",)

    def check_frozen(self, name: str, system: Any) -> None:
        if system.width < 8:
            raise ConfigError(f"the {name} is too narrow")

    def start(self, frozen: Any) -> Any:
        return None if self.anew else frozen["teacher"]

    def losses(self, params: Any, state: Any, batch: Any, key: Any, *, frozen: Any, **more: Any) -> Any:
        value, aux = super().losses(params, state, batch, key, **more)["network"]
        away = sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (params, frozen["teacher"])), strict=True))
        return {"network": (value + away, {**aux, "metrics": {"away": away}})}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run with checkpoints 3 and 6."""
    workdir = tmp_path_factory.mktemp("teacher")
    tiny.train(workdir, training__steps=6)
    return str(workdir)


def pupil(source, **fields):
    return {"system": {"name": "pupil", **fields}, "frozen": {"teacher": source}}


def weights(workdir, which="constant_0.99", step=None):
    return restore_weights(workdir, tiny.prepare().target.params, which, step)[0]


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


def test_a_run_is_loaded_once_onto_the_mesh_and_started_from(teacher, tmp_path):
    """Sharded like the parameters themselves; neither averaged, saved nor changed."""
    program = tiny.prepare(8, mesh__data=1, mesh__fsdp=8, **pupil(teacher))
    loaded = program.load_frozen(tmp_path)
    state = program.init(loaded)
    assert same(state.params, weights(teacher)) and same(loaded["teacher"], weights(teacher))
    kernel = state.frozen["teacher"]["network"]["middle"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 8}
    state, _ = program.step(state, program.zero_metrics(), program.put(program.pipeline.batch(0)))
    assert same(state.frozen["teacher"], weights(teacher)) and not same(state.params, weights(teacher))
    assert "frozen" not in state.as_dict()
    assert json.loads((tmp_path / "frozen.json").read_text()) == {
        "teacher": {"run": teacher, "step": 6, "weights": "constant_0.99"}
    }


def test_a_student_may_start_anew(teacher):
    program = tiny.prepare(**pupil({"run": teacher, "step": 3, "weights": "raw"}, anew=True))
    state = program.init(program.load_frozen())
    assert same(state.params, tiny.prepare().init().params) and same(state.frozen["teacher"], weights(teacher, "raw", 3))


def test_a_resumed_run_goes_on_with_the_same_checkpoint(teacher, tmp_path):
    """However much further its teacher has been trained."""
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    for folder in ("whole", "broken_off"):
        steps = 4 if folder == "whole" else 2
        tiny.train(tmp_path / folder, training__steps=steps, **pupil(str(copy)))
    tiny.train(copy, training__steps=8)
    assert training.finished_steps(copy)[-1] == 8
    tiny.train(tmp_path / "broken_off", training__steps=4, **pupil(str(copy)))
    assert json.loads((tmp_path / "broken_off" / "frozen.json").read_text())["teacher"]["step"] == 6
    assert tiny.losses(tmp_path / "broken_off") == tiny.losses(tmp_path / "whole")
    assert tiny.rows(tmp_path / "whole")[0]["away"] == 0 < tiny.rows(tmp_path / "whole")[-1]["away"]


def test_a_file(teacher, tmp_path):
    path, flat = tmp_path / "weights.safetensors", flatten_dict(jax.device_get(weights(teacher)), sep="/")
    save_file({name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}, path)
    recipe = pupil({"file": str(path)})
    program = tiny.prepare(8, mesh__data=1, mesh__fsdp=8, **recipe)
    loaded = program.load_frozen()
    assert same(loaded["teacher"], weights(teacher))
    kernel = loaded["teacher"]["network"]["middle"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 8}
    tiny.train(tmp_path / "run", training__steps=2, **recipe)
    assert len(json.loads((tmp_path / "run" / "frozen.json").read_text())["teacher"]["sha256"]) == 64
    save_file({name: np.ascontiguousarray(leaf) + 1 for name, leaf in flat.items()}, path)
    with pytest.raises(CheckpointError, match="weights.safetensors has changed since this run began"):
        tiny.train(tmp_path / "run", training__steps=4, **recipe)
    save_file({"kernel": np.zeros(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"must be named GROUP/PATH/OF/LEAF, found \['kernel'\]"):
        frozen.shapes(recipe["frozen"])
    save_file({**flat, "network/middle/kernel": np.full_like(flat["network/middle/kernel"], np.nan)}, path)
    with pytest.raises(CheckpointError, match="weights.safetensors: network/middle/kernel has numbers that are not finite"):
        program.load_frozen()
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="weights.safetensors cannot be read"):
        frozen.shapes(recipe["frozen"])


def test_halves_are_read_as_float32(tmp_path):
    save_file({"network/w": np.arange(4, dtype=np.float16), "network/n": np.arange(4)}, tmp_path / "file.safetensors")
    source = frozen.FrozenFile(str(tmp_path / "file.safetensors"))
    assert {name: leaf.dtype for name, leaf in source.shapes()["network"].items()} == {"w": jnp.float32, "n": jnp.int32}


def test_paths_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = frozen.sources({"one": "~/run", "other": {"file": "~/w.safetensors"}})
    assert found["one"].run == f"{tmp_path}/run" and found["other"].file == f"{tmp_path}/w.safetensors"


def test_a_damaged_record_of_what_is_frozen(teacher, tmp_path):
    run = shutil.copytree(teacher, tmp_path / "run")
    (run / "frozen.json").write_text("{")
    with pytest.raises(CheckpointError, match="frozen.json, the record of what is frozen, cannot be read .*: restore it"):
        frozen.load({"teacher": teacher}, {"teacher": tiny.prepare().target.params}, run)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, ConfigError, "learns from a trained run: name its directory with --config.frozen.teacher=DIR"),
        ("nowhere", CheckpointError, "nowhere holds no run"),
        (3, ConfigError, "frozen.teacher must be a run's directory or a mapping with 'run' or 'file', got 3"),
        ({"run": "{}", "stpe": 3}, ConfigError, "frozen.teacher has no field 'stpe'; did you mean 'step'"),
        ({"run": "{}", "step": 4}, CheckpointError, r"has no checkpoint of step 4 \(it has: 3, 6\)"),
        ({"run": "{}", "weights": "power_0.1"}, CheckpointError, "no weights 'power_0.1'.*constant_0.99"),
        ({"file": "nowhere.safetensors"}, CheckpointError, "nowhere.safetensors cannot be read"),
    ],
)
def test_what_cannot_be_frozen(teacher, source, error, message):
    if isinstance(source, dict):
        source = {key: teacher if value == "{}" else value for key, value in source.items()}
    with pytest.raises(error, match=message):
        tiny.prepare(**pupil(source))


def test_teachers_that_cannot_teach(teacher, tmp_path):
    with pytest.raises(ConfigError, match=r"the teacher .* has another network than the student, in 6 parameters: network/"):
        tiny.prepare(**pupil(teacher, width=24))
    tiny.prepare(**pupil(teacher, width=24, anew=True))  # what is not started from may have any network
    tiny.train(tmp_path, training__steps=1, system={"name": "toy", "width": 4})
    with pytest.raises(ConfigError, match="the teacher is too narrow"):
        tiny.prepare(**pupil(str(tmp_path)))
    with pytest.raises(ConfigError, match="--config.frozen.teacher=DIR; did you mean 'techer'"):
        tiny.prepare(system={"name": "pupil"}, frozen={"techer": teacher})
