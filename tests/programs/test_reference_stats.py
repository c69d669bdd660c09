"""The program that makes reference statistics, and evaluation against them."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from absl import flags

from diffusion_jax import evaluate, reference_stats
from diffusion_jax.data.sources.bundled import digits
from diffusion_jax.errors import DataError, DiffusionError
from diffusion_jax.evaluation import Settings, evaluate_samples
from diffusion_jax.metrics.statistics_file import read_statistics
from tests.programs.in_process import call
from tests.tiny_systems import start_program


def make(*arguments):
    """(exit status, stdout, stderr) of the program."""
    process = start_program(*map(str, arguments), program="reference_stats")
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors


@pytest.fixture(scope="module")
def stats(runs, tmp_path_factory):
    """Of the tiny base's training images, with images, and the classifier trained beside."""
    path = tmp_path_factory.mktemp("stats") / "stats.npz"
    status, printed, errors = make(f"--data={runs['base']}", f"--out={path}", "--images", "--classifier_steps=20")
    assert status == 0 and printed == f"{path}: 1617 images, 128 features of small\n", errors
    return path


def test_what_is_recorded(stats):
    found = read_statistics(stats)
    assert (found.meta.dataset, found.meta.split, found.meta.count) == ("digits", "train", 1617)
    assert found.meta.network == "small" and len(found.meta.checksum) == 64
    np.testing.assert_array_equal(found.images[5], digits()[5]["image"])
    with np.load(stats) as arrays:  # as pytorch-fid and the ADM evaluator read them
        assert arrays["mu"].shape == (128,) and arrays["sigma"].shape == (128, 128) and arrays["arr_0"].shape == (1617, 8, 8, 1)


@pytest.mark.slow  # two programs; means over processes are tested with the metrics
def test_two_processes_make_the_same_file(stats, runs, tmp_path):
    """Each takes its turn of the images; the classifier is trained alike by both."""
    port = random.Random().randint(20000, 60000)
    arguments = [f"--data={runs['base']}", f"--out={tmp_path / 'stats.npz'}", "--classifier_steps=20"]
    arguments += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    both = [start_program(*arguments, f"--process_id={rank}", program="reference_stats") for rank in (0, 1)]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one, two = read_statistics(stats), read_statistics(tmp_path / "stats.npz")
    assert two.meta == one.meta
    np.testing.assert_allclose(two.mean, one.mean, rtol=1e-9)
    np.testing.assert_allclose(two.covariance, one.covariance, rtol=1e-9, atol=1e-9 * np.abs(one.covariance).max())


def test_another_network_is_refused(stats, runs, tmp_path):
    """Another training of the small classifier is another network: its checksum says so."""
    np.savez(tmp_path / "images.npz", np.zeros((4, 8, 8, 1), np.uint8))
    with pytest.raises(DataError, match="checksum") as caught:
        call(
            evaluate, f"--samples={tmp_path / 'images.npz'}", f"--workdir={runs['base']}", f"--reference={stats}",
            "--classifier_steps=30", f"--out={tmp_path / 'out'}",
        )  # fmt: skip
    assert str(stats) in str(caught.value)


def test_a_file_serves_as_the_run_itself(stats, runs, tmp_path):
    """The same classifier, trained anew with the same seed: the same distances from a file as from the data."""
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", images)
    settings = Settings(classifier_steps=20, metrics=("fid", "pr"))
    from_data = evaluate_samples(tmp_path / "images.npz", tmp_path / "a", settings, runs["base"])
    with_file = Settings(classifier_steps=20, metrics=("fid", "pr"), reference=str(stats))
    from_file = evaluate_samples(tmp_path / "images.npz", tmp_path / "b", with_file, runs["base"])
    for name in ("frechet_distance", "precision", "recall"):
        assert from_file[name] == pytest.approx(from_data[name], rel=1e-6)
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["settings"]["reference_data"] == str(stats)


BAD = {
    "nothing": ([], "--data is needed"),
    "missing": (["--data={tmp}/none", "--out={tmp}/a.npz"], "there is no such run, recipe, folder or npz"),
    "ending": (["--data={base}", "--out={tmp}/a.txt"], "statistics are a .npz file"),
    "overrides": (["--data={tmp}", "--out={tmp}/a.npz", "--config.data.flip=True"], "leave out --config.data.flip"),
    "flag": (["--data={tmp}", "--num=many"], "flag --num=many: invalid literal"),
    "few": (["--data={tmp}", "--num=1"], "flag --num=1: 1 is not integer >= 2"),
    "over a file": (
        ["--data={base}", "--out={tmp}/images.npz"],
        "images.npz is there already, and holds no statistics: choose",
    ),
    "alone": (["--data={tmp}", "--out={tmp}/a.npz"], "for images alone, name another network"),
    "split": (["--data={base}", "--out=/proc/a.npz", "--classifier_steps=20"], "cannot write statistics to /proc/a.npz"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(runs, tmp_path, name):
    arguments, message = BAD[name]
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    before = (tmp_path / "images.npz").read_bytes()
    with pytest.raises((DiffusionError, flags.Error)) as caught:
        call(reference_stats, *(text.format(tmp=tmp_path, **runs) for text in arguments))
    assert (tmp_path / "images.npz").read_bytes() == before
    assert message in str(caught.value) and "\n" not in str(caught.value)
