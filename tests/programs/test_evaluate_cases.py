"""The evaluation program over checkpoints, settings and given images; stopped and continued; beside a training job."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from diffusion_jax import evaluate
from diffusion_jax.data.files import write_image
from diffusion_jax.errors import CheckpointError, ConfigError, DataError, DiffusionError
from diffusion_jax.evaluation import Case, Evaluator, Settings, evaluate_samples, expand
from diffusion_jax.evaluation.sweep import wait_for_run
from diffusion_jax.inference import Run, SampleFolder, open_samples
from tests.programs.in_process import call
from tests.tiny_systems import start_program
from tests.training import tiny

QUICK = Settings(num=20, classifier_steps=20, batch_size=20, metrics=("fid", "agreement"))


def test_cases_are_every_checkpoint_with_every_setting(runs):
    found = expand([runs["base"]], "latest,1", {"guidance": [[1.0], [3.0]], "steps": [[2]]})
    assert [(case.checkpoints, case.sampling) for case in found] == [
        ((step,), {"guidance": [scale], "steps": [2]}) for step in (None, 1) for scale in (1.0, 3.0)
    ]
    assert expand([runs["base"]], "all") == [Case((1,))]
    assert expand(["a", "b"], "700/600") == [Case((700, 600))]
    with pytest.raises(ConfigError, match="'all' of a cascade"):
        expand(["a", "b"], "all")
    with pytest.raises(ConfigError, match="cannot read checkpoints 'newest'"):
        expand(["a"], "newest")
    with pytest.raises(ConfigError, match="2 values for 1 stage"):
        expand(["a"], "1/2")


def test_cases_are_evaluated_once_and_other_settings_anew(runs, tmp_path, caplog):
    caplog.set_level("INFO")
    evaluator = Evaluator([runs["base"]], tmp_path, QUICK)
    rows = [evaluator.evaluate(Case((1,), {"guidance": [scale]})) for scale in (1.0, 3.0)]
    assert rows[0]["metrics"]["frechet_distance"] != rows[1]["metrics"]["frechet_distance"]
    again = Evaluator([runs["base"]], tmp_path, QUICK)
    assert again.evaluate(Case((None,), {"guidance": [3.0]}))["metrics"] == rows[1]["metrics"]
    assert "is evaluated already" in caplog.text and len(again.results.rows) == 2
    flags = [f"--workdir={runs['base']}", f"--out={tmp_path}", "--num=20", "--classifier_steps=20", "--metrics=fid,agreement"]
    for row, scale in zip(rows, (1, 3), strict=True):  # which is there already: what is said is of it, not of the last
        printed = json.loads(call(evaluate, *flags, "--noreport", f"--guidance={scale}"))
        assert printed == {**row["metrics"], "num_samples": 20}
        assert json.loads((tmp_path / "metrics.json").read_text()) == {**printed, "settings": row["settings"]}
    with again.results.held(), pytest.raises(DataError, match="is being written by process"):
        call(evaluate, *flags, "--noreport")
    more = Evaluator([runs["base"]], tmp_path, Settings(num=30, classifier_steps=20, metrics=("duplicates",)))
    assert more.evaluate(Case())["metrics"] == {"duplicates": 0} and len(more.results.rows) == 3
    assert not (tmp_path / "samples").exists()


def test_given_images_are_measured_like_drawn_ones(runs, tmp_path):
    """The samples of a case, kept and given back: the same numbers."""
    kept = Settings(num=20, classifier_steps=20, metrics=("fid", "agreement", "kid"), keep_samples=True)
    row = Evaluator([runs["base"]], tmp_path / "drawn", kept).evaluate(Case())
    drawn = tmp_path / "drawn" / "samples" / row["key"] / "stage1"
    found = evaluate_samples(drawn, tmp_path / "given", kept, runs["base"])
    for name in ("frechet_distance", "agreement", "kid"):
        assert found[name] == pytest.approx(row["metrics"][name], rel=1e-6)
    (tmp_path / "plain").mkdir()
    for index, image in enumerate(open_samples(drawn).head(20)):
        write_image(tmp_path / "plain" / f"{index}.png", image)
    plain = evaluate_samples(tmp_path / "plain", tmp_path / "given", Settings(num=20, classifier_steps=20), runs["base"])
    assert plain["frechet_distance"] == pytest.approx(found["frechet_distance"], rel=1e-6) and "agreement" not in plain


def test_an_interruption_while_samples_are_drawn_leaves_an_evaluation_that_goes_on(runs, tmp_path, monkeypatch):
    """What was drawn is kept, nothing half-written remains, and no thread draws on."""
    settings = dataclasses.replace(QUICK, num=60, metrics=("duplicates",))
    drawing = threading.Event()
    real = SampleFolder.add

    def add(folder, indices, images):
        real(folder, indices, images)
        drawing.set()

    def interrupt(*_):
        drawing.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SampleFolder, "add", add)
        patched.setattr("diffusion_jax.evaluation.evaluator.measure", interrupt)
        Evaluator([runs["base"]], tmp_path, settings).evaluate(Case())
    for thread in threading.enumerate():
        if thread.name.startswith("draw"):
            thread.join(60)
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".writer"]
    assert len(list(tmp_path.glob("samples/*/stage1/parts/*.npz"))) >= 1
    assert Evaluator([runs["base"]], tmp_path, settings).evaluate(Case())["metrics"] == {"duplicates": 0}


@pytest.mark.slow
def test_what_is_real_lies_nearer_than_noise(runs, tmp_path):
    """Training images as samples, held-out ones, and noise: in order by every distance, and copies are seen."""
    settings = Settings(num=180, classifier_steps=150, metrics=("fid", "kid", "pr", "neighbours"), kid_subset_size=100)
    run = Run(runs["base"])
    images = {
        split: np.concatenate([part["image"] for part in run.pipeline(split).one_pass(64, 180)]) for split in ("train", "test")
    }
    images["noise"] = np.random.default_rng(0).integers(0, 256, images["test"].shape, np.uint8)
    found = {}
    for name, each in images.items():
        np.savez(tmp_path / f"{name}.npz", each)
        found[name] = evaluate_samples(tmp_path / f"{name}.npz", tmp_path / name, settings, runs["base"])
    for metric in ("frechet_distance", "kid"):
        assert max(found["train"][metric], found["test"][metric]) < 0.2 * found["noise"][metric]
    assert found["test"]["recall"] > 0.5 > found["noise"]["precision"]
    assert found["train"]["neighbour_distance"] < 1e-3 < found["test"]["neighbour_distance"]
    assert found["test"]["neighbour_distance_ratio"] == pytest.approx(1, abs=1e-6)


BAD = {
    "nothing": ([], "--workdir=DIR (a trained run) or --samples=DIR (images) is needed"),
    "metric": (["--workdir={base}", "--metrics=fdi"], "metrics: unknown 'fdi'; did you mean 'fid'"),
    "spatial": (
        ["--workdir={base}", "--metrics=sfid", "--num=4"],
        "needs the output spatial, which the network 'small' has not",
    ),
    "network": (["--workdir={base}", "--features=inception"], "--features=inception needs --features_file=FILE"),
    "file": (["--workdir={base}", "--features=inception", "--features_file={base}/no.pth"], "no.pth"),
    "reference": (["--workdir={base}", "--reference={base}/no.npz"], "no statistics file"),
    "samples": (["--samples={base}/nothing", "--out={base}/x"], "does not exist"),
    "drawn": (["--samples={base}", "--out={base}/x", "--guidance=2"], "--guidance says how to draw some"),
    "alone": (["--samples={images}", "--out={base}/x"], "samples alone need a network"),
    "watch": (["--workdir={base},{sr}", "--watch"], "--watch follows one run"),
    "checkpoints": (["--workdir={base}", "--checkpoints=9", "--num=4"], "has no checkpoint of step 9 (it has: 1)"),
    "batch_size": (["--workdir={base}", "--batch_size=0"], "--batch_size must be a whole number at least 1, got 0"),
    "seed": (["--workdir={base}", "--seed=-1"], "--seed must be a whole number in [0, 4294967295], got -1"),
    "ode_steps": (["--workdir={base}", "--ode_steps=0"], "--ode_steps must be a whole number at least 1, got 0"),
    "bits_per_dim": (["--workdir={base}", "--bits_per_dim=-3"], "--bits_per_dim must be a whole number at least 0, or None"),
    "classifier_steps": (["--workdir={base}", "--classifier_steps=0"], "--classifier_steps must be a whole number at least 1"),
    "a folder of others": (["--workdir={base}", "--out={base}"], "holds checkpoints, which no evaluation wrote there"),
    "num": (["--workdir={base}", "--num=1"], "--num must be a whole number at least 2, got 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(runs, tmp_path, name):
    arguments, message = BAD[name]
    np.savez(tmp_path / "images.npz", np.zeros((4, 8, 8, 1), np.uint8))
    given = {**runs, "images": tmp_path / "images.npz"}
    with pytest.raises(DiffusionError) as caught:
        call(evaluate, "--classifier_steps=20", "--noreport", *(text.format(**given) for text in arguments))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow  # three evaluations of 600 samples
def test_a_killed_evaluation_goes_on(runs, tmp_path):
    """Killed with a part of its samples on disk: they are not drawn again, and the row is that of an undisturbed run."""
    settings = Settings(num=600, classifier_steps=20, metrics=("fid",), batch_size=20)
    expected = Evaluator([runs["base"]], tmp_path / "whole", settings).evaluate(Case())["metrics"]
    arguments = [f"--workdir={runs['base']}", f"--out={tmp_path / 'killed'}", "--num=600", "--batch_size=20"]
    arguments += ["--classifier_steps=20", "--metrics=fid", "--noreport"]
    process = start_program(*arguments, program="evaluate")
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("killed/samples/*/stage1/parts/*.npz"))) < 5 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "results.jsonl").read_text()
    again = start_program(*arguments, program="evaluate")
    printed, log = again.communicate(timeout=200)
    assert again.returncode == 0 and "of 600 samples are there already" in log
    assert json.loads(printed)["frechet_distance"] == pytest.approx(expected["frechet_distance"], rel=1e-9)


@pytest.mark.slow  # two programs, six evaluations
def test_beside_a_training_job(tmp_path):
    """Every checkpoint is evaluated as it appears, and the watch ends with the job."""
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    workdir = tmp_path / "run"
    watching = start_program(
        f"--workdir={workdir}", "--watch", "--poll=0.2", "--patience=300", "--num=20", "--classifier_steps=20",
        "--guidance=1,3", "--metrics=fid,agreement,pr", program="evaluate",
    )  # fmt: skip
    flags = ["--config.training.steps=6", "--config.training.checkpoint_every=2", "--config.training.keep_last=10"]
    training = tiny.run("train", "--config=configs/digits.py:tiny", f"--workdir={workdir}", *flags)
    assert training.returncode == 0, training.stderr
    _, log = watching.communicate(timeout=300)
    assert watching.returncode == 0, log
    rows = [json.loads(line) for line in (workdir / "evaluation" / "results.jsonl").read_text().splitlines()]
    assert [(row["step"], row["sampling"]["guidance"]) for row in rows] == [(s, [g]) for s in (2, 4, 6) for g in (1.0, 3.0)]
    page = (workdir / "evaluation" / "report.html").read_text()
    assert page.count("<svg") >= 4 and page.count("data:image/png;base64") == 12
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser:
        picture = tmp_path / "page.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--window-size=1200,3000", f"--screenshot={picture}", (workdir / "evaluation" / "report.html").as_uri()]
        subprocess.run(command, capture_output=True, timeout=120)
        assert picture.stat().st_size > 50_000


def test_watching_what_never_begins(tmp_path):
    with pytest.raises(CheckpointError, match="no run has begun"):
        wait_for_run(str(tmp_path), poll=0.01, patience=0.05)
