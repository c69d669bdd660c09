"""A real training run of digits: the metrics put its checkpoints in the order in which they were made."""

from __future__ import annotations

import pytest

from diffusion_jax.evaluation import Evaluator, Settings, expand
from tests.tiny_systems import start_program
from tests.training.tiny import ROOT


@pytest.mark.slow
def test_checkpoints_rank_in_order(tmp_path):
    overrides = {
        "training.steps": 900, "training.checkpoint_every": 100, "training.keep_last": 20, "training.tensorboard": False,
        "sampling.solver": "ddim", "sampling.steps": 20,
    }  # fmt: skip
    fields = [f"--config.{name}={value}" for name, value in overrides.items()]
    recipe = ROOT / "configs" / "digits.py"
    run = start_program(f"--config={recipe}:base", f"--workdir={tmp_path}", *fields, program="train")  # on one device
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    settings = Settings(num=500, metrics=("fid", "kid", "agreement"), kid_subset_size=250)
    evaluator = Evaluator([str(tmp_path)], tmp_path / "evaluation", settings)
    rows = [evaluator.evaluate(point)["metrics"] for point in expand([str(tmp_path)], "100,300,900")]
    assert [row["classifier_accuracy"] > 0.95 for row in rows] == [True] * 3
    for name, sign in (("frechet_distance", -1), ("kid", -1), ("agreement", 1)):
        values = [sign * row[name] for row in rows]
        assert values == sorted(values), (name, values)
    first, last = rows[0], rows[-1]
    assert first["frechet_distance_interval"][0] > last["frechet_distance_interval"][1]
