"""Bad input to the training program: one clear line before expensive work, and what is there stays."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import training
from diffusion_jax.errors import DiffusionError
from diffusion_jax.training.recipes import load_recipe
from tests.training import tiny

BASE, SR, FOLDER = "configs/digits.py:tiny", "configs/mnist.py:sr,tiny", "configs/folder.py:tiny"

# Recipe, flags, and what the line says.
BAD = {
    "field": (BASE, ["--config.system.network.chanels=8"], "did you mean 'channels'"),
    "part": (BASE, ["--config.system.network.name=unte"], "unknown network 'unte'; did you mean 'unet'"),
    "solver": (BASE, ["--config.sampling.solver=dpm"], "unknown solver 'dpm'"),
    "image_size": (BASE, ["--config.data.image_size=9"], "image_size 9 is not divisible by 2"),
    "groups": (BASE, ["--config.system.network.groups=3"], "8 channels do not divide into 3 groups"),
    "heads": (BASE, ["--config.system.network.num_heads=3"], "do not divide into num_heads=3"),
    "batch": (BASE, ["--config.data.batch_size=6"], "does not divide over 8 devices"),
    "mesh": (BASE, ["--config.mesh.fsdp=3"], "there are 8 devices"),
    "accumulate": (BASE, ["--config.training.accumulate=3"], "x 3 microbatches"),
    "low_res": (SR, ["--config.system.conditioners.low_res.size=64"], "size (64, 64) must lie within image_size (32, 32)"),
    "labels": (
        BASE,
        ["--config.system.conditioners.labels.num_classes=4"],
        "the data have 10 classes, the system num_classes=4",
    ),
    "guidance": (FOLDER, ["--config.data.source.path={images}", "--config.sampling.guidance=3"], "unconditional"),
    "missing": (FOLDER, ["--config.data.source.path={images}/nothing"], "no directory"),
    "empty": (FOLDER, ["--config.data.source.path={empty}"], "no images"),
    "corrupt": (FOLDER, ["--config.data.source.path={corrupt}"], "3.png is corrupt"),
    "recipe": ("configs/digit.py:tiny", [], "no recipe"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images of a user: whole, with one that is cut short, and none."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("images", "corrupt", "empty")}
    rng = np.random.default_rng(0)
    for index in range(8):
        for name in ("images", "corrupt"):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(made[name] / f"{index}.png")
    cut = made["corrupt"] / "3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return made


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name, folders, tmp_path):
    recipe, flags, message = BAD[name]
    with pytest.raises(DiffusionError) as raised:
        tiny.work(recipe, tmp_path / "run", *(flag.format(**folders) for flag in flags))
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_corrupt_images_are_skipped_and_counted_where_the_recipe_says_so(folders, caplog):
    source = {"data.source.path": str(folders["corrupt"]), "data.source.skip_corrupt": True}
    with caplog.at_level("WARNING"):
        pipeline = training.prepare(load_recipe(FOLDER, source)).pipeline
    assert pipeline.skipped == 1 and "3.png" in caplog.text
