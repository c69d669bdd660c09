"""A sweep of a cascade's later stage draws its base once, and draws what the whole cascade would."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.evaluation import Settings
from diffusion_jax.evaluation.evaluator import Evaluator
from diffusion_jax.evaluation.sweep import Case
from diffusion_jax.inference import draw
from diffusion_jax.inference.generator import Generator
from diffusion_jax.inference.requests import ask
from diffusion_jax.inference.run import find
from diffusion_jax.inference.sample_sets import open_samples
from tests.tiny_systems import runs  # noqa: F401


@pytest.mark.slow
def test_levels_share_the_stored_images_of_the_base(runs, tmp_path, monkeypatch):  # noqa: F811
    workdirs, drawn = [runs["base"], runs["sr"]], []

    class Watched(Generator):
        def __init__(self, cascade, *args, **kwargs):
            drawn.append(cascade.spec.size[0])
            super().__init__(cascade, *args, **kwargs)

    monkeypatch.setattr(draw, "Generator", Watched)
    evaluator = Evaluator(workdirs, tmp_path, Settings(num=4, batch_size=4, metrics=("duplicates",), keep_samples=True))
    rows = [evaluator.evaluate(Case((None,), {"quantize": [True], "aug_level": [level]})) for level in (0.0, 0.6)]
    assert drawn == [8, 16, 16]
    last = [np.concatenate(list(open_samples(tmp_path / "samples" / row["key"] / "stage2").batches(4, 4))) for row in rows]
    assert np.abs(last[0].astype(int) - last[1]).max() > 1

    whole = find(workdirs, sampling={"quantize": [True], "aug_level": [0.6]})
    params, _ = whole.load()
    asked, _ = ask(whole.cascade.conditioners, whole.runs[0].data, 4)
    together = next(Generator(whole.cascade, params, batch_size=4)(range(4), asked)).images[-1]
    assert np.abs(together.astype(int) - last[1]).max() <= 1  # programs may round differently

    evaluator.close()
    assert (tmp_path / "samples" / draw.EARLIER).exists()  # asked to keep samples
