"""The sampling program: what it writes, that it continues, that image i stays image i, and bad input."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import sample
from diffusion_jax.data.files import read_image
from diffusion_jax.errors import ConfigError, DataError, DiffusionError
from diffusion_jax.inference import Generator, SampleFolder, find, open_samples
from diffusion_jax.inference.requests import Requests
from diffusion_jax.training.mesh import make_mesh
from tests.programs.in_process import call
from tests.tiny_systems import start_program


def images_in(folder: Path, num: int) -> np.ndarray:
    return np.stack([read_image(folder / f"{index:06d}.png") for index in range(num)])


def off_by(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory) -> Path:
    """Ten images of the cascade."""
    out = tmp_path_factory.mktemp("drawn")
    found = find([runs["base"], runs["sr"]])
    grid = sample.sample(found, sample.Options(out=str(out), num=10, batch_size=4))
    assert grid == out / "grid.png" and grid.exists()
    return out


def test_files_and_settings(runs, drawn):
    images = images_in(drawn, 10)
    assert images.shape == (10, 16, 16, 1) and images.std((1, 2, 3)).min() > 1
    assert json.loads((drawn / "labels.json").read_text()) == list(range(10))
    settings = json.loads((drawn / "samples.json").read_text())
    assert [stage["sampling"]["aug_level"] for stage in settings["stages"]] == [0.0, 0.1]
    assert [stage["checkpoint"] for stage in settings["stages"]] == [1, 1]
    assert Image.open(drawn / "grid.png").size == (4 * 66 + 2, 3 * 66 + 2)  # 10 of 16 pixels shown as 64


def test_a_continued_run_gives_identical_files(runs, drawn, tmp_path):
    options = sample.Options(out=str(tmp_path), num=6, batch_size=4)
    found = find([runs["base"], runs["sr"]])
    sample.sample(found, options)
    (tmp_path / "000002.png").unlink()
    (tmp_path / "000004.png").unlink()
    untouched = (tmp_path / "000001.png").stat().st_mtime_ns
    sample.sample(found, dataclasses.replace(options, num=10))
    for index in range(10):
        assert (tmp_path / f"{index:06d}.png").read_bytes() == (drawn / f"{index:06d}.png").read_bytes()
    assert (tmp_path / "000001.png").stat().st_mtime_ns == untouched


def test_npz_holds_the_same_images_and_the_labels(runs, drawn, tmp_path, caplog):
    caplog.set_level("INFO", "diffusion_jax")
    found = find([runs["base"], runs["sr"]])
    sample.sample(found, sample.Options(out=str(tmp_path), num=10, batch_size=4, format="npz"))
    with np.load(tmp_path / "samples.npz") as samples:
        np.testing.assert_array_equal(samples["arr_0"], images_in(drawn, 10))
        assert samples["arr_1"].tolist() == list(range(10))
    assert "images/s after the first batch" in caplog.text


@pytest.mark.parametrize(("batch_size", "devices"), [(3, 1), (10, 1), (8, 8)])
def test_image_i_is_the_same_whatever_the_batch_and_the_devices(runs, drawn, batch_size, devices):
    found = find([runs["base"], runs["sr"]])
    params, _ = found.load()
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:devices])
    host = jax.tree.map(np.asarray, params)
    generator = Generator(found.cascade, host, batch_size=batch_size, mesh=mesh)
    asked = Requests({"label": np.arange(10, dtype=np.int32)})
    images = np.concatenate([part.images[-1] for part in generator(range(10), asked)])
    assert off_by(images, images_in(drawn, 10)) <= 1


def test_other_seeds_and_labels_are_other_images(runs, drawn, tmp_path):
    found = find([runs["base"], runs["sr"]])
    options = sample.Options(out=str(tmp_path / "a"), num=2, batch_size=4, seed=1)
    sample.sample(found, options)
    assert off_by(images_in(tmp_path / "a", 2), images_in(drawn, 2)) > 5
    each = {"labels": "1-per-class"}
    sample.sample(found, dataclasses.replace(options, out=str(tmp_path / "b"), seed=0, conditioning=each, num=None))
    assert len(list((tmp_path / "b").glob("0*.png"))) == 10
    assert off_by(images_in(tmp_path / "b", 10), images_in(drawn, 10)) == 0  # the same labels, said otherwise


def test_super_resolution_alone_takes_held_out_or_given_images(runs, tmp_path):
    found = find([runs["sr"]])
    sample.sample(found, sample.Options(out=str(tmp_path / "own"), num=3, batch_size=4))
    low_res = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "in.npz", arr_0=low_res, arr_1=np.array([3, 4]))
    options = sample.Options(out=str(tmp_path / "given"), conditioning={"input": str(tmp_path / "in.npz")}, num=3, batch_size=4)
    sample.sample(found, options)
    assert json.loads((tmp_path / "given" / "labels.json").read_text()) == [3, 4, 3]
    with pytest.raises(ConfigError, match="--input is for runs conditioned on 'low_res'"):
        sample.sample(find([runs["base"]]), options)


@pytest.mark.slow  # ten programs that are killed
@pytest.mark.parametrize("format", ["png", "npz"])
def test_a_run_that_is_killed_again_and_again_draws_what_an_undisturbed_one_does(runs, tmp_path, format):
    """Ten random moments; then the samples are complete and the same, and the folder was nobody else's meanwhile."""
    num, rng = 8000, np.random.default_rng()
    arguments = [f"--workdir={runs['base']}", f"--num={num}", "--batch_size=50", f"--format={format}"]
    whole = start_program(*arguments, f"--out={tmp_path / 'whole'}")
    assert whole.wait(300) == 0
    killed, manifest = [*arguments, f"--out={tmp_path / 'killed'}"], tmp_path / "killed" / "manifest.jsonl"
    for _ in range(10):
        before = manifest.stat().st_size if manifest.exists() else 0
        process = start_program(*killed)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if manifest.exists() and manifest.stat().st_size > before:
                time.sleep(rng.uniform(0, 0.1))
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with pytest.raises(DataError, match="interrupted"):
        open_samples(tmp_path / "killed")
    last = start_program(*killed)
    _, log = last.communicate(timeout=300)
    assert last.returncode == 0 and f"of {num} samples are there already" in log
    for files in ("*.png", "labels.json", "samples.npz"):
        for file in (tmp_path / "whole").glob(files):
            assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "killed").glob(".*.tmp"))


def test_what_is_there_already_is_said_and_fewer_are_refused(runs, drawn, caplog):
    caplog.set_level("INFO", "diffusion_jax")
    found, files = find([runs["base"], runs["sr"]]), {path: path.stat().st_mtime_ns for path in drawn.glob("[!.]*")}
    sample.sample(found, sample.Options(out=str(drawn), num=10))
    assert "10 of 10 samples are there already" in caplog.text
    assert f"python -m diffusion_jax.evaluate --samples={drawn} --workdir={runs['sr']}" in caplog.messages[-1]
    with pytest.raises(ConfigError, match="holds 10 samples, more than the 9 asked for: give --num=10 or more, or choose"):
        sample.sample(found, sample.Options(out=str(drawn), num=9))
    assert {path: path.stat().st_mtime_ns for path in drawn.glob("[!.]*")} == files


def test_a_person_s_own_pictures_are_neither_written_over_nor_taken_for_samples(runs, tmp_path, monkeypatch):
    """Nor is a parameter read before that is said; and ~ is a person's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("diffusion_jax.inference.run.Run.load", lambda *_: pytest.fail("parameters were read"))
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "pictures" / "000000.png")
    before = (tmp_path / "pictures" / "000000.png").read_bytes()
    with pytest.raises(DataError, match=rf"{tmp_path}/pictures holds 000000.png, which this program did not write there"):
        call(sample, f"--workdir={runs['base']}", "--out=~/pictures", "--num=1")
    assert {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()} == {"000000.png": before}


def test_an_interruption_leaves_whole_files_and_a_folder_that_goes_on(runs, drawn, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "diffusion_jax")
    found, options = find([runs["base"], runs["sr"]]), sample.Options(out=str(tmp_path / "out"), num=10, batch_size=4)
    real = SampleFolder.add

    def interrupt(folder, indices, images):
        real(folder, indices, images)
        folder.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SampleFolder, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sample.sample(found, options)
    assert "Compiling for batches of" in caplog.text and not list((tmp_path / "out").glob(".*.tmp"))
    sample.sample(found, options)
    assert "8 of 10 samples are there already" in caplog.text and "2 images in" in caplog.text
    for index in range(10):
        assert (tmp_path / "out" / f"{index:06d}.png").read_bytes() == (drawn / f"{index:06d}.png").read_bytes()


# Bad input -------------------------------------------------------------------

BAD = {
    "guidance": (["--workdir={unconditional}", "--guidance=2"], "guidance 2 on an unconditional model"),
    "text": (["--workdir={base}", "--text=x.npz"], "--text is for runs conditioned on 'text'; this one"),
    "mesh": (["--workdir={base}", "--mesh=data=3"], "data x fsdp x tensor = 3 x 1 x 1 = 3, but there are 8 devices"),
    "axis": (["--workdir={base}", "--mesh=fdsp=2"], "--mesh: unknown 'fdsp'; did you mean 'fsdp'"),
    "labels": (["--workdir={base}", "--labels=3,10"], "label 10 is out of range: the model has 10 classes, 0 to 9"),
    "workdir": (["--workdir={base}/nothing"], "holds no run"),
    "step": (["--workdir={base}", "--step=7"], "has no checkpoint of step 7 (it has: 1)"),
    "sizes": (
        ["--workdir={sr},{sr}"],
        "stage 1 of the cascade draws images of the shape (16, 16, 1), but stage 2 takes low-resolution images",
    ),
    "settings": (["--workdir={base},{sr}", "--out={drawn}", "--seed=5"], "seed was 0, now 5"),
    "solver": (["--workdir={base}", "--solver=dim"], "did you mean 'ddim'"),
    "stages": (["--workdir={base}", "--steps=5/5"], "steps: 2 values for 1 stage"),
    "values": (["--workdir={base},{sr}", "--guidance=2,1"], "one value is needed; for stages of a cascade, 2/1"),
    "value": (["--workdir={base}", "--guidance=strong"], "--guidance: cannot read 'strong'"),
    "override": (["--workdir={base}", "--config.sampling.stps=3"], "did you mean 'steps'"),
    "num": (["--workdir={base}", "--num=-1"], "--num must be a whole number at least 1, or None, got -1"),
    "none": (["--workdir={base}", "--num=0"], "--num must be a whole number at least 1, or None, got 0"),
    "batch_size": (["--workdir={base}", "--batch_size=0"], "--batch_size must be a whole number at least 1, got 0"),
    "seed": (["--workdir={base}", "--seed=-1"], "--seed must be a whole number in [0, 4294967295], got -1"),
    "wide seed": (["--workdir={base}", "--seed=4294967296"], "--seed must be a whole number in [0, 4294967295]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(runs, drawn, tmp_path, name):
    arguments, message = BAD[name]
    with pytest.raises(DiffusionError) as caught:
        given = (text.format(drawn=drawn, **runs) for text in arguments)  # a later --out wins
        call(sample, f"--out={tmp_path / 'out'}", *given)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_program_itself(runs, tmp_path):
    """One launch that draws, one that is refused, one that asks for help."""
    good = start_program(f"--workdir={runs['base']}", "--num=2", f"--out={tmp_path}")
    bad, manual = start_program(f"--workdir={tmp_path}/no", "--out=x"), start_program("--help")
    printed, errors = good.communicate(timeout=120)
    assert good.returncode == 0 and printed == f"{tmp_path / 'grid.png'}\n", errors
    _, errors = bad.communicate(timeout=120)
    assert bad.returncode == 2 and errors.startswith("sample: error: ") and errors.count("\n") == 1
    text, _ = manual.communicate(timeout=120)
    for wanted in ("python -m diffusion_jax.sample --workdir=DIR --num=64 --out=DIR2", "--labels", "--guidance", "cascade"):
        assert wanted in text
