"""The editing program: what it writes, that kept pixels are kept, and bad input in one line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.files import read_image
from diffusion_jax.edit import Options, edit
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.inference.run import find
from tests.tiny_systems import make_run, start_program


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Folders of three 8x8 images, of their masks (white on the right), and of one image of another size."""
    root = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks", "other", "wide"):
        (root / folder).mkdir()
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / "images" / f"{name}.png")
        mask = np.zeros((8, 8), np.uint8)
        mask[:, 4:] = 255
        Image.fromarray(mask).save(root / "masks" / f"{name}.webp", lossless=True)
        Image.new("L", (9, 12)).save(root / "wide" / f"{name}.png")
    Image.fromarray(rng.integers(0, 256, (12, 9), dtype=np.uint8)).save(root / "other" / "a.png")
    return root


def read(folder, count: int) -> np.ndarray:
    return np.stack([read_image(folder / f"{number:06d}.png") for number in range(count)])


def inputs(given) -> np.ndarray:
    return np.stack([read_image(given / "images" / f"{name}.png") for name in "abc"])


def options(given, tmp_path, method: str, **more) -> Options:
    return Options(method=method, images=str(given / "images"), out=str(tmp_path), batch_size=2, **more)


@pytest.mark.parametrize("method", ["sdedit", pytest.param("repaint", marks=pytest.mark.slow)])
def test_what_the_mask_keeps_is_kept(runs, given, tmp_path, method):
    more = {"resamples": 2, "jump": 2} if method == "repaint" else {"strength": 0.6}
    chosen = options(given, tmp_path, method, masks=str(given / "masks"), **more)
    found = find([runs["unconditional"]], sampling={"solver": ["ddpm"], "steps": [4]})
    grid = edit(found, chosen)
    out, before = read(tmp_path, 3), inputs(given)
    assert (out[:, :, :4] == before[:, :, :4]).all() and (out[:, :, 4:] != before[:, :, 4:]).mean() > 0.8
    assert grid == tmp_path / "grid.png" and Image.open(grid).size == (3 * 66 + 2, 3 * 66 + 2)
    settings = json.loads((tmp_path / "edit.json").read_text())
    assert settings["inputs"] == ["a.png", "b.png", "c.png"] and settings["sampling"]["solver"] == "ddpm"
    (tmp_path / "000001.png").unlink()
    files = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    edit(found, dataclasses.replace(chosen, batch_size=3))  # what is missing is drawn again, and is what it was
    assert (read(tmp_path, 3) == out).all() and all(path.read_bytes() == content for path, content in files.items())
    with pytest.raises(ConfigError, match="holds samples of other settings: seed was 0, now 1; choose another folder"):
        edit(found, dataclasses.replace(chosen, seed=1))


def test_ilvr_and_labels(runs, given, tmp_path):
    found = find([runs["base"]], sampling={"steps": [3]})
    edit(found, options(given, tmp_path, "ilvr", factor=2, conditioning={"labels": "3"}))
    held = read(tmp_path, 3).astype(float)
    means = lambda x: x.reshape(3, 2, 4, 2, 4).mean((2, 4)).ravel()  # noqa: E731
    assert np.corrcoef(means(held), means(inputs(given).astype(float)))[0, 1] > 0.8


@pytest.mark.slow
def test_interpolation_shows_both_ends_and_what_lies_between(runs, given, tmp_path):
    found = find([runs["base"]], sampling={"steps": [12], "solver": ["ddim"]})
    edit(found, options(given, tmp_path, "interpolate", between=2))
    out = read(tmp_path, 8).astype(float)  # two pairs of four
    assert (np.abs(out[3] - out[4]) <= 1).all()  # the second image ends one row and begins the next


@pytest.mark.parametrize(
    ("fields", "sampling", "error", "message"),
    [
        ({"method": "paint"}, {}, ConfigError, "method: unknown 'paint'; did you mean 'repaint'"),
        ({"method": "sdedit", "strength": 1.5}, {}, ConfigError, r"--strength must be a number in \[0, 1\], got 1.5"),
        ({"method": "sdedit", "seed": -1}, {}, ConfigError, r"--seed must be a whole number in \[0, 4294967295\], got -1"),
        ({"method": "sdedit", "batch_size": 0}, {}, ConfigError, "--batch_size must be a whole number at least 1, got 0"),
        ({"method": "sdedit", "repeats": 0}, {}, ConfigError, "--repeats must be"),
        ({"method": "ilvr", "stop": 1.0}, {}, ConfigError, r"--stop must be a number in \[0, 1\), got 1.0"),
        ({"method": "sdedit", "strength": float("nan")}, {}, ConfigError, "--strength must be"),
        ({"method": "repaint"}, {}, ConfigError, "needs --masks=DIR"),
        ({"method": "ilvr", "masks": "masks"}, {}, ConfigError, "takes no --masks"),
        ({"method": "ilvr", "factor": 3}, {}, ConfigError, "factor 3 must divide"),
        ({"method": "repaint", "masks": "other"}, {}, DataError, "no mask for the image 'b'"),
        ({"method": "repaint", "masks": "wide"}, {}, DataError, "a.png: a mask of 9x12 for an image of 8x8"),
        ({"method": "repaint", "masks": "other", "images": "other"}, {}, DataError, "is 9x12, but the model draws 8x8.*--fit"),
        ({"method": "sdedit", "images": "nowhere"}, {}, DataError, "no directory"),
        ({"method": "interpolate"}, {"solver": ["ddpm"]}, ConfigError, "solver 'ddpm' cannot: use --solver=ddim"),
        ({"method": "interpolate"}, {"guidance": [2.0]}, ConfigError, "use --guidance=1"),
        ({"method": "sdedit"}, {"guidance": [2.0]}, ConfigError, "say which with --labels"),
    ],
)
def test_bad_input(runs, given, tmp_path, fields, sampling, error, message):
    named = {name: str(given / value) for name, value in fields.items() if name in ("images", "masks")}
    with pytest.raises(error, match=message):
        chosen = options(given, tmp_path / "out", "sdedit")
        edit(find([runs["base"]], sampling=sampling), dataclasses.replace(chosen, **{**fields, **named}))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_of_a_person_s_own_is_left_alone(runs, given, tmp_path, monkeypatch):
    """Nor is anything read, let alone drawn; and ~ is a person's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.png").write_bytes(b"a holiday")
    chosen = dataclasses.replace(options(given, tmp_path, "sdedit"), out="~/mine", images="~/nowhere")
    with pytest.raises(DataError, match="mine holds 000000.png, which this program did not write there: choose another"):
        edit(find([runs["base"]]), chosen)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == {"000000.png": b"a holiday"}
    with pytest.raises(DataError, match=rf"no directory '{tmp_path}/nowhere'"):
        edit(find([runs["base"]]), dataclasses.replace(chosen, out=str(tmp_path / "new")))


def test_classifiers_neither_edit_nor_guide_edits(runs, given, tmp_path):
    network = {
        "name": "unet_classifier", "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (),
        "head_channels": 8, "groups": 4,
    }  # fmt: skip
    classifier = make_run(tmp_path / "classifier", name="noisy_classifier", network=network)
    chosen = options(given, tmp_path / "out", "sdedit", conditioning={"labels": "3"})
    with pytest.raises(ConfigError, match="is of the system NoisyClassifier, which"):
        edit(find([classifier]), chosen)
    with pytest.raises(ConfigError, match="leave out --classifier"):
        edit(find([runs["base"]], sampling={"classifier": [classifier]}), chosen)


def test_fitting(runs, given, tmp_path):
    chosen = options(given, tmp_path, "sdedit", strength=0.0, fit=True)
    edit(find([runs["base"]], sampling={"steps": [2]}), dataclasses.replace(chosen, images=str(given / "other")))
    assert read(tmp_path, 1).shape == (1, 8, 8, 1)


@pytest.mark.slow
def test_the_program_says_what_is_wrong_in_one_line(runs, given, tmp_path):
    program = start_program(
        f"--workdir={runs['base']}", "--method=sdedit", f"--images={given / 'other'}", f"--out={tmp_path / 'o'}", program="edit"
    )
    _, error = program.communicate(timeout=120)
    assert program.returncode == 2
    assert error.strip().splitlines()[-1].startswith("edit: error:") and "--fit" in error
