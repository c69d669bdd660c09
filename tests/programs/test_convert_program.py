"""The program that brings published weights in as a run: what it writes is a run, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import convert, evaluation, sample, training
from diffusion_jax.errors import CheckpointError, ConfigError, DataError, DiffusionError
from diffusion_jax.inference import Run, find
from diffusion_jax.interop.convert import export
from diffusion_jax.registry import build
from diffusion_jax.training.given_weights import system_of
from diffusion_jax.training.recipes import load_recipe
from tests.interop import published
from tests.peers import peer, relative
from tests.tiny_systems import start_program

RECIPE = """
def get_config(variant="small"):
    network = {"name": "unet", "channels": 32, "groups": 32, "multipliers": (1, 2), "num_res_blocks": 1}
    network |= {"attention_resolutions": (4,), "num_heads": 2}
    if variant == "wide":
        network["channels"] = 64
    return {
        "system": {
            "process": {"schedule": {"name": "cosine", "num_steps": 20}, "prediction": "eps"},
            "network": network, "conditioners": {"labels": {"num_classes": 10, "drop": 0.1}},
        },
        "data": {"source": {"name": "digits"}, "image_size": 8, "channels": 1, "batch_size": 8},
        "optimizer": {"learning_rate": 1e-6},
        "training": {"steps": 2, "tensorboard": False},
        "sampling": {"solver": "ddim", "steps": 2},
    }
"""
UNSEEN = {"data.source": {"name": "folder", "path": "/nowhere"}}  # the data that it was trained on are not here


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.py"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def tensors(recipe) -> dict[str, np.ndarray]:
    """What a checkpoint of that network has in it, from its table."""
    network = system_of(load_recipe(recipe)).network
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), network.shapes())
    return export(params, build("layout", "improved_diffusion").weight_maps(network))


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("weights") / "model.safetensors")
    save_file(tensors, path)
    return path


def options(workdir, **fields) -> convert.Options:
    return convert.Options(**{"layout": "improved_diffusion", "workdir": str(workdir), **fields})


@pytest.mark.slow
def test_a_converted_run_is_sampled_and_exported(recipe, weights, tensors, tmp_path):
    workdir = tmp_path / "run"
    program = start_program(
        "--layout=improved_diffusion", f"--weights={weights}", f"--config={recipe}", f"--workdir={workdir}", program="convert"
    )
    out, err = program.communicate(timeout=300)
    assert program.returncode == 0 and out.strip() == str(workdir), err

    for kind in ("raw", "ema"):
        params, step = Run(workdir).load(weights=kind)
        assert step == 0
        stem = tensors["input_blocks.0.0.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params["network"]["stem"]["kernel"], stem)

    grid = sample.sample(find([str(workdir)]), sample.Options(out=str(tmp_path / "samples"), num=2, batch_size=2))
    assert grid.exists()
    back = convert.export(options(workdir, export=str(tmp_path / "back.safetensors")))
    found = load_file(back)
    assert found.keys() == tensors.keys() and all(np.array_equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.slow  # half a minute: it compiles an evaluation and a training step
def test_a_converted_run_is_evaluated_and_trained_on(recipe, weights, tmp_path):
    workdir = convert.convert(options(tmp_path / "run", weights=weights, config=recipe))
    metrics = evaluation.evaluate_run(workdir, settings=evaluation.Settings(num=4, batch_size=4, classifier_steps=2))
    assert np.isfinite(metrics["held_out_loss"])
    assert load_recipe(str(workdir / "config.json")) == load_recipe(recipe)

    given = Run(workdir).params(weights="raw")["network"]["stem"]["kernel"]
    result = training.train(load_recipe(str(workdir / "config.json")), workdir)
    assert result["step"] == 2 and np.isfinite(result["loss"])
    moved = Run(workdir).params(2, "raw")["network"]["stem"]["kernel"] - given
    assert 0 < np.abs(moved).max() < 1e-5  # by the tiny learning rate, from the given weights


@pytest.fixture(scope="module")
def converted(recipe, weights, tmp_path_factory) -> Path:
    return convert.convert(options(tmp_path_factory.mktemp("runs") / "run", weights=weights, config=recipe), UNSEEN)


@pytest.mark.slow
def test_averages_from_a_file_of_their_own_at_a_step(recipe, weights, tensors, tmp_path):
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, tmp_path / "ema.safetensors")
    made = options(tmp_path / "run", weights=weights, config=recipe, ema=str(tmp_path / "ema.safetensors"), step=7000)
    convert.convert(made, UNSEEN)
    (raw, step), (ema, _) = (Run(tmp_path / "run").load(weights=kind) for kind in ("raw", "ema"))
    assert step == 7000
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["source"]["path"] == "/nowhere"
    for one, other in zip(jax.tree.leaves(raw), jax.tree.leaves(ema), strict=True):
        np.testing.assert_array_equal(2 * one, other)


def test_a_folder_of_diffusers_says_what_its_network_is(recipe, tmp_path):
    torch, diffusers = peer("torch"), peer("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs" / "unet")
    changed = UNSEEN | {"system.conditioners": {}, "system.network.dropout": 0.1}
    made = {"layout": "diffusers", "config": recipe, "weights": str(tmp_path / "theirs")}
    convert.convert(options(tmp_path / "run", **made), changed)
    run = Run(tmp_path / "run")
    network = run.config["system"]["network"]
    assert network["num_res_blocks"] == 2 and network["embedding"] == "ddpm" and network["dropout"] == 0.1
    assert run.system.network.num_params() == sum(p.numel() for p in model.parameters())

    with pytest.raises(DataError, match="config.json is of another network"):
        convert.export(options(tmp_path / "run", layout="diffusers", export=str(tmp_path / "theirs/unet/back.safetensors")))
    back = load_file(convert.export(options(tmp_path / "run", layout=None, export=str(tmp_path / "back"))))
    theirs = model.state_dict()
    assert back.keys() == theirs.keys() and all(np.array_equal(back[name], theirs[name].numpy()) for name in theirs)

    for change, message in (
        (UNSEEN, "the weights have no class embeddings, the recipe's system has 11"),
        (changed | {"data.channels": 3}, "8 pixels and 1 channels, the recipe's are of 8 and 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert.convert(options(tmp_path / "other", **made), change)
    (tmp_path / "theirs/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DataError, match="unet holds neither diffusion_pytorch_model.safetensors nor"):
        convert.convert(options(tmp_path / "other", **made), changed)
    assert not (tmp_path / "other").exists()


def recipe_of(path, channels=1, **system) -> str:
    data = {"source": {"name": "digits"}, "image_size": 8, "channels": channels, "batch_size": 8}
    path.write_text(f"def get_config():\n    return {{'system': {system}, 'data': {data}}}\n")
    return str(path)


def halves(network):
    """Parameters that are 0.5 everywhere."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), network.shapes())


TINY = {"num_res_blocks": 1, "attention_resolutions": (4,)}
LABELS = {"conditioners": {"labels": {"num_classes": 5, "drop": 0.0}}}
NCSNPP = {"embedding": "fourier", "pyramid": True, "resample_filter": (1, 3, 3, 1)}
ROUND_TRIPS = {
    "cosines first, freq_shift 1": {"network": "unet"},
    "sines first": {"network": "unet"},
    "guided, the new order": {
        "network": {
            **TINY,
            "name": "unet",
            "channels": 64,
            "multipliers": (0.5, 1),
            "head_channels": 16,
            "resample": "resblock",
        },
        "process": {"schedule": "cosine", "prediction": "eps", "variance": "learned_range"},
        "objective": {"vlb_weight": 0.001},
        **LABELS,
    },
    "NCSN++": {"network": {**TINY, "name": "song_unet", "channels": 16, "multipliers": (2, 2), **NCSNPP}},
    "EDM2, classes": {
        "network": {**TINY, "name": "edm2", "channels": 16, "multipliers": (1, 2), "head_channels": 16},
        **LABELS,
    },
}


@pytest.mark.parametrize(
    "name", [name if name == "sines first" else pytest.param(name, marks=pytest.mark.slow) for name in ROUND_TRIPS]
)
def test_a_run_remembers_what_its_weights_came_in(name, tmp_path):
    """In, out, and in again, with no flag for the way out; and out to the library that they are of."""
    there = published.save(name, tmp_path / "theirs")
    recipe = recipe_of(tmp_path / "r.py", **{"process": {"schedule": "cosine"}, **ROUND_TRIPS[name]}, channels=3)
    made = options(tmp_path / "run", layout=published.CASES[name][0], config=recipe, weights=str(there))
    if name == "guided, the new order":
        made = dataclasses.replace(made, attention_order="new")
    run = convert.convert(made)
    out = convert.export(options(run, layout=None, export=str(tmp_path / "out")))
    module = published.opened(name, out)
    assert relative(published.outputs(name, module), published.outputs(name, published.case(name).theirs)) <= 1e-5
    again = dataclasses.replace(made, workdir=str(tmp_path / "again"), weights=str(out))
    one, other = (Run(folder).params() for folder in (run, convert.convert(again)))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert Run(run).config["system"] == Run(tmp_path / "again").config["system"]


def test_a_run_that_was_trained_here_names_its_layout(converted, tmp_path):
    run = shutil.copytree(converted, tmp_path / "run")
    record = run / "weights.json"
    assert json.loads(record.read_text())["layout"] == {"name": "improved_diffusion", "attention_order": "legacy"}
    record.write_text("[]")
    with pytest.raises(CheckpointError, match="weights.json is not the record of where .*: restore it, or remove it and name"):
        convert.export(options(run, layout=None, export=str(tmp_path / "out")))
    record.unlink()
    with pytest.raises(ConfigError, match="--layout is needed, one of diffusers, .*: the run was trained here"):
        convert.export(options(run, layout=None, export=str(tmp_path / "out")))


def test_a_noisy_classifier_is_a_run_too(tmp_path):
    network = {"name": "unet_classifier", "channels": 8, "groups": 4, "multipliers": (1, 2), "num_res_blocks": 1}
    network |= {"attention_resolutions": (4,), "head_channels": 8}
    process = {"schedule": "cosine"}
    recipe = recipe_of(tmp_path / "r.py", name="noisy_classifier", process=process, network=network, num_classes=10)
    network = system_of(load_recipe(recipe)).network
    save_file(export(halves(network), build("layout", "guided_diffusion").weight_maps(network)), tmp_path / "c.safetensors")
    made = options(tmp_path / "run", layout="guided_diffusion", config=recipe, weights=str(tmp_path / "c.safetensors"))
    found = Run(convert.convert(made)).params()["network"]
    assert found["pool"]["positions"].shape == (17, 16) and np.all(found["pool"]["positions"] == 0.5)


def test_the_fourier_frequencies_of_an_edm_checkpoint_become_the_networks(tmp_path):
    """They are no parameters: drawn once before training, and kept with the weights."""
    network = {"name": "song_unet", "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
    network |= {"embedding": "fourier"}
    process = {"schedule": "cosine_continuous"}
    recipe = recipe_of(tmp_path / "r.py", process=process, network=network)
    network = system_of(load_recipe(recipe)).network
    tensors = export(halves(network), build("layout", "edm").weight_maps(network))
    tensors["map_noise.freqs"] = np.linspace(-7, 7, len(network.module.frequencies)).astype(np.float32)
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "e.safetensors")
    made = options(tmp_path / "run", layout="edm", config=recipe, weights=str(tmp_path / "e.safetensors"))
    found = Run(convert.convert(made))
    np.testing.assert_array_equal(np.float32(found.system.network.module.frequencies), tensors["map_noise.freqs"])
    assert np.all(found.params()["network"]["stem"]["kernel"] == 0.5)


# Bad input ------------------------------------------------------------------------------------------------------------


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_wants_to_run_code_is_refused_by_name(recipe, tmp_path):
    peer("torch")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"weight": Trap(tmp_path / "ran")}))
    program = start_program(
        "--layout=improved_diffusion", f"--weights={tmp_path}/model.pkl", f"--config={recipe}", f"--workdir={tmp_path}/run",
        program="convert",
    )  # fmt: skip
    _, err = program.communicate(timeout=300)
    assert program.returncode == 2
    (line,) = [line for line in err.splitlines() if line.startswith("convert: error: ")]
    assert "model.pkl" in line and "it asks for" in line and "io.open" in line and "refused" in line and "safetensors" in line
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "fields", "error", "message"),
    [
        (without("out.2.bias"), {}, DataError, r"bad.safetensors: .*missing: out.2.bias \(for head/bias\)$"),
        (lambda t: t | {"alien.weight": t["out.2.bias"]}, {}, DataError, "unknown: alien.weight$"),
        (lambda t: t | {"out.2.bias": t["out.0.bias"]}, {}, DataError, r"out.2.bias \(32,\) \(for head/bias \(1,\)\)$"),
        (dict, {"config": ":wide"}, DataError, "of another shape: time_embed.0.weight .128, 32. .*and .* more"),
        (dict, {"config": ":small", "weights": "none.safetensors"}, DataError, "no weight file none.safetensors"),
        (dict, {"layout": "guided_difusion"}, ConfigError, "unknown layout 'guided_difusion'; did you mean"),
        (dict, {"attention_order": "new"}, ConfigError, "--attention_order is for layout 'guided_diffusion'"),
        (dict, {"weights": None}, ConfigError, "^--weights: needed to bring weights in"),
        (dict, {"layout": "diffusers"}, DataError, "config.json, .*, cannot be read .*beside the weights"),
        (dict, {"ema": "none.pt"}, DataError, "no weight file none.pt"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(recipe, tensors, tmp_path, change, fields, error, message):
    save_file(change(tensors), tmp_path / "bad.safetensors")
    if "config" in fields:
        fields = fields | {"config": recipe + fields["config"]}
    given = {"weights": str(tmp_path / "bad.safetensors"), "config": recipe, **fields}
    with pytest.raises(error, match=message) as caught:
        convert.convert(options(tmp_path / "run", **given), UNSEEN)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_directory_with_a_run_in_it_is_never_touched(recipe, weights, converted):
    before = {path: path.stat().st_mtime_ns for path in converted.rglob("*")}
    with pytest.raises(CheckpointError, match="holds a run already; choose another directory"):
        convert.convert(options(converted, weights=weights, config=recipe))
    assert before == {path: path.stat().st_mtime_ns for path in converted.rglob("*")}


def test_flags_that_belong_to_the_other_way(converted, tmp_path):
    with pytest.raises(ConfigError, match="leave out --config.system.x"):
        convert.export(options(converted, export=str(tmp_path / "out.safetensors")), {"system.x": 1})
    with pytest.raises(ConfigError, match="--average=raw says what --export writes"):
        convert.convert(options(tmp_path / "new", weights="x.pt", config="y.py", average="raw"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"export": "out.pt"}, "out.pt: weights are written as .safetensors"),
        ({"export": "/proc/none/out.safetensors"}, "cannot write /proc/none/out.safetensors"),
        ({"export": "out.safetensors", "weights": "x.pt"}, "leave out --weights"),
        ({"export": "out.safetensors", "average": "power_0.1"}, "has no weights 'power_0.1'"),
        ({"export": "out.safetensors", "layout": "guided_diffusion", "workdir": "/nowhere"}, "holds no run"),
    ],
)
def test_bad_exports(converted, fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiffusionError, match=message):
        convert.export(options(fields.pop("workdir", converted), **fields))
    assert not list(tmp_path.iterdir())


def test_the_order_of_heads_that_each_network_was_published_with():
    for name, order in (("unet_adm64", "new"), ("unet_adm256", "legacy"), ("unet", "legacy")):
        config = {"system": {"network": {"name": name}}}
        assert convert._layout(options("x", layout="guided_diffusion"), config, {}).attention_order == order
        recorded = {"name": "guided_diffusion", "attention_order": "legacy"}  # what the run came in, over what is usual
        assert convert._layout(options("x", layout=None), config, recorded).attention_order == "legacy"
        asked = options("x", layout="guided_diffusion", attention_order="legacy")
        assert convert._layout(asked, config, {}).attention_order == "legacy"
