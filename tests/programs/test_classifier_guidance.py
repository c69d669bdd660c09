"""The programs with a noisy classifier: guided samples, its evaluation, negative labels, and their errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference.run import find
from diffusion_jax.sample import Options, sample
from tests.tiny_systems import make_run

CLASSIFIER = {"name": "unet_classifier", "channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (),
              "head_channels": 8, "groups": 4}  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A classifier of digits with random weights, of another schedule than the models'."""
    path = tmp_path_factory.mktemp("runs") / "classifier"
    process = {"schedule": {"name": "linear", "num_steps": 50}}
    return make_run(path, name="noisy_classifier", network=CLASSIFIER, process=process)


def _draw(workdir: str, out: Path, num: int = 4, negative: str | None = None, **sampling) -> tuple[np.ndarray, np.ndarray]:
    given = {} if negative is None else {"negative_labels": negative}
    runs = find([workdir], sampling={name: [value] for name, value in sampling.items()})
    sample(runs, Options(str(out), num=num, format="npz", batch_size=4, conditioning=given))
    with np.load(out / "samples.npz") as arrays:
        return arrays["arr_0"], arrays.get("arr_1")


@pytest.mark.slow
def test_an_unconditional_run_follows_a_classifiers_labels(runs, classifier, tmp_path):
    plain, none = _draw(runs["unconditional"], tmp_path / "plain")
    zero, labels = _draw(runs["unconditional"], tmp_path / "zero", classifier=classifier, classifier_scale=0.0)
    strong, _ = _draw(runs["unconditional"], tmp_path / "strong", classifier=classifier, classifier_scale=30.0)
    assert none is None and labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(zero, plain)
    assert np.abs(strong.astype(int) - plain).max() > 10
    recorded = json.loads((tmp_path / "strong" / "samples.json").read_text())["stages"][0]
    assert recorded["sampling"]["classifier"] == classifier and recorded["sampling"]["classifier_scale"] == 30


@pytest.mark.slow
def test_negative_labels_change_what_guidance_leads_away_from(runs, tmp_path):
    plain, _ = _draw(runs["base"], tmp_path / "plain", guidance=3.0)
    negative, _ = _draw(runs["base"], tmp_path / "negative", guidance_weight=2.0, negative="7")
    assert np.abs(negative.astype(int) - plain).max() > 2
    with pytest.raises(ConfigError, match="set guidance above 1"):
        _draw(runs["base"], tmp_path / "none", negative="7")
    with pytest.raises(ConfigError, match="10"):
        _draw(runs["base"], tmp_path / "range", guidance=3.0, negative="10")


@pytest.mark.slow
def test_a_classifier_is_evaluated_by_its_accuracy_alone(classifier, tmp_path):
    found = evaluation.evaluate_run(classifier, tmp_path, evaluation.Settings(num=40, batch_size=20))
    measured = {name for name in found if name not in ("settings", "num_samples")}
    assert {name.split("_t_")[0] for name in measured} == {"held_out_loss", "accuracy_top1", "accuracy_top5"}
    assert 0 <= found["accuracy_top1_t_0_to_0.25"] <= found["accuracy_top5_t_0_to_0.25"] <= 1
    assert not (tmp_path / "samples").exists()
    with pytest.raises(ConfigError, match="'fid' needs a model that draws images"):
        evaluation.evaluate_run(classifier, tmp_path, evaluation.Settings(num=40, metrics=("fid",)))


def test_what_programs_refuse(runs, classifier, tmp_path):
    with pytest.raises(ConfigError, match="is of the system NoisyClassifier, which draws nothing.*--classifier=WORKDIR"):
        sample(find([classifier]), Options(str(tmp_path)))
    with pytest.raises(ConfigError, match="is of the system Diffusion, which is no classifier: train one"):
        find([runs["base"]], sampling={"classifier": [runs["base"]]})
    with pytest.raises(ConfigError, match="name one with --classifier=WORKDIR"):
        find([runs["base"]], sampling={"classifier_scale": [2.0]})
    with pytest.raises(ConfigError, match="'accuracy' needs a noisy classifier"):
        evaluation.evaluate_run(runs["base"], tmp_path, evaluation.Settings(num=4, metrics=("accuracy",), classifier_steps=2))
