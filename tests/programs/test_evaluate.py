"""The evaluation program: its metrics, its picture, and bad input."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import ConfigError
from diffusion_jax.evaluation import Settings, evaluate_run
from tests.tiny_systems import start_program

QUICK = Settings(num=40, classifier_steps=30, batch_size=20)


@pytest.mark.slow
def test_a_cascade_has_the_metrics_of_its_stages(runs, tmp_path):
    metrics = evaluate_run([runs["base"], runs["sr"]], tmp_path, QUICK)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    for name in ("classifier_accuracy", "base_agreement", "cascade_agreement"):
        assert 0 <= metrics[name] <= 1
    for name in ("held_out_loss", "base_held_out_loss", "frechet_distance", "base_frechet_distance"):
        assert np.isfinite(metrics[name]) and metrics[name] > 0
    assert metrics["frechet_reference"] < metrics["frechet_distance"]
    assert metrics["num_samples"] == 40 and metrics["settings"]["stages"][1]["sampling"]["aug_level"] == 0.1
    # 4 rows of 10 classes in each half; 16 pixels shown as 64, 2 around each, 12 between
    picture = Image.open(tmp_path / "real_and_samples.png")
    assert picture.size == (2 * (10 * 66 + 2) + 12, 4 * 66 + 2)


@pytest.mark.slow  # two cascades, three chains
def test_the_base_of_a_truncated_cascade_is_measured_by_its_finished_images(runs, tmp_path):
    plain = evaluate_run([runs["base"], runs["sr"]], tmp_path / "plain", QUICK)
    truncated = evaluate_run([runs["base"], runs["sr"]], tmp_path / "cut", QUICK, sampling={"truncated": [True]})
    for name in ("base_agreement", "base_frechet_distance"):
        assert truncated[name] == pytest.approx(plain[name], abs=1e-6)
    assert truncated["frechet_distance"] != plain["frechet_distance"]


@pytest.mark.slow
def test_a_chain_has_bits_per_dim_and_without_classes_no_agreement(runs, tmp_path):
    settings = Settings(num=10, classifier_steps=10, bits_per_dim=4, bits_per_dim_terms=True)
    metrics = evaluate_run(runs["unconditional"], tmp_path, settings)
    parts = metrics["bits_per_dim_parts"]
    assert metrics["bits_per_dim"] == pytest.approx(sum(parts.values()), rel=1e-4) and parts["prior"] > 0
    assert "agreement" not in metrics and metrics["frechet_distance"] > 0
    rows = list(csv.DictReader((tmp_path / "bits_per_dim_terms.csv").open()))
    assert [row["step"] for row in rows] == [*map(str, range(len(rows) - 1)), "prior"] and "bits_per_dim_terms" not in metrics
    assert sum(float(row["bits_per_dim"]) for row in rows) == pytest.approx(metrics["bits_per_dim"], rel=1e-4)
    assert float(rows[0]["bits_per_dim"]) == pytest.approx(parts["decoder"], rel=1e-4)
    assert 0 < float(rows[0]["x0_mse"]) < float(rows[-2]["x0_mse"]) and float(rows[0]["eps_mse"]) > 0


def test_a_super_resolution_run_alone_is_asked_for_the_classes_of_its_images(runs, tmp_path):
    metrics = evaluate_run(runs["sr"], tmp_path, dataclasses.replace(QUICK, metrics=("agreement", "sr")))
    assert metrics["psnr"] > 0 and 0 <= metrics["agreement"] <= 1 and "base_agreement" not in metrics


def test_bad_settings(runs, tmp_path):
    with pytest.raises(ConfigError, match="--num must be a whole number at least 2"):
        Settings(num=1)
    with pytest.raises(ConfigError, match="guidance 3 on an unconditional model"):
        evaluate_run(runs["unconditional"], tmp_path, QUICK, sampling={"guidance": [3.0]})


@pytest.mark.slow
def test_the_program_prints_metrics(runs, tmp_path):
    good = start_program(
        f"--workdir={runs['base']}", "--num=10", "--classifier_steps=30", f"--out={tmp_path}", program="evaluate"
    )
    printed, errors = good.communicate(timeout=120)
    assert good.returncode == 0, errors
    assert json.loads(printed)["num_samples"] == 10
