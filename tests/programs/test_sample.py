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
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import Generator, find
from diffusion_jax.inference.requests import Requests
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
    (tmp_path / "000004.png").write_bytes(b"broken")
    untouched = (tmp_path / "000001.png").stat().st_mtime_ns
    sample.sample(found, dataclasses.replace(options, num=10))
    for index in range(10):
        assert (tmp_path / f"{index:06d}.png").read_bytes() == (drawn / f"{index:06d}.png").read_bytes()
    assert (tmp_path / "000001.png").stat().st_mtime_ns == untouched


def test_npz_holds_the_same_images_and_the_labels(runs, drawn, tmp_path):
    found = find([runs["base"], runs["sr"]])
    sample.sample(found, sample.Options(out=str(tmp_path), num=10, batch_size=4, format="npz"))
    with np.load(tmp_path / "samples.npz") as samples:
        np.testing.assert_array_equal(samples["arr_0"], images_in(drawn, 10))
        assert samples["arr_1"].tolist() == list(range(10))


@pytest.mark.parametrize(("batch_size", "devices"), [(3, 1), (10, 1), (8, 8)])
def test_image_i_is_the_same_whatever_the_batch_and_the_devices(runs, drawn, batch_size, devices):
    found = find([runs["base"], runs["sr"]])
    params, _ = found.load()
    generator = Generator(found.cascade, params, batch_size=batch_size, devices=jax.devices()[:devices])
    rows = Requests({}, lambda indices: (indices % 10).astype(np.int32))
    images = np.concatenate([part.images[-1] for part in generator(range(10), rows)])
    assert off_by(images, images_in(drawn, 10)) <= 1


def test_other_seeds_and_labels_are_other_images(runs, drawn, tmp_path):
    found = find([runs["base"], runs["sr"]])
    options = sample.Options(out=str(tmp_path / "a"), num=2, batch_size=4, seed=1)
    sample.sample(found, options)
    assert off_by(images_in(tmp_path / "a", 2), images_in(drawn, 2)) > 5
    sample.sample(found, dataclasses.replace(options, out=str(tmp_path / "b"), seed=0, labels="1-per-class", num=None))
    assert len(list((tmp_path / "b").glob("0*.png"))) == 10
    assert off_by(images_in(tmp_path / "b", 10), images_in(drawn, 10)) == 0  # the same labels, said otherwise


def test_super_resolution_alone_takes_held_out_or_given_images(runs, tmp_path):
    found = find([runs["sr"]])
    sample.sample(found, sample.Options(out=str(tmp_path / "own"), num=3, batch_size=4))
    low_res = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "in.npz", arr_0=low_res, arr_1=np.array([3, 4]))
    options = sample.Options(out=str(tmp_path / "given"), input=str(tmp_path / "in.npz"), num=3, batch_size=4)
    sample.sample(found, options)
    assert json.loads((tmp_path / "given" / "labels.json").read_text()) == [3, 4, 3]
    with pytest.raises(ConfigError, match="draws from noise alone"):
        sample.sample(find([runs["base"]]), options)


def test_a_killed_run_continues(runs, tmp_path):
    arguments = [f"--workdir={runs['base']}", f"--out={tmp_path}", "--num=3000", "--batch_size=50"]
    process = start_program(*arguments)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("0*.png"))) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("0*.png"))[:20]}
    assert 20 <= len(list(tmp_path.glob("0*.png"))) < 3000
    num = len(list(tmp_path.glob("0*.png"))) + 60
    sample.sample(find([runs["base"]]), sample.Options(out=str(tmp_path), num=num, batch_size=50))
    assert images_in(tmp_path, num).shape == (num, 8, 8, 1)
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())


# Bad input: the program itself, every case at once -------------------------------------------------------------------

BAD = {
    "guidance": (
        ["--workdir={unconditional}", "--guidance=2"],
        "guidance 2 on an unconditional model",
    ),
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
}


@pytest.fixture(scope="module")
def bad(runs, drawn, tmp_path_factory) -> dict[str, tuple[int, str, Path]]:
    """(exit status, stderr, out) of each case, run two at a time."""
    results = {}
    waiting = list(BAD)
    while waiting:
        running = {}
        for name in [waiting.pop(0) for _ in range(min(2, len(waiting)))]:
            out = tmp_path_factory.mktemp("bad") / "out"
            arguments = [text.format(drawn=drawn, **runs) for text in BAD[name][0]]
            running[name] = start_program(f"--out={out}", *arguments), out  # a later --out wins
        for name, (process, out) in running.items():
            _, errors = process.communicate(timeout=120)
            results[name] = process.returncode, errors, out
    return results


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(bad, name):
    status, errors, out = bad[name]
    assert status == 2
    assert BAD[name][1] in errors
    assert errors.startswith("sample: error: ") and errors.count("\n") == 1
    assert not out.exists()


def test_help_reads_like_a_manual(runs):
    process = start_program("--help")
    text, _ = process.communicate(timeout=120)
    for wanted in ("python -m diffusion_jax.sample --workdir=DIR --num=64 --out=DIR2", "--labels", "--guidance", "cascade"):
        assert wanted in text
