"""The watch on the loss by noise level."""

from __future__ import annotations

import numpy as np

from diffusion_jax.training.collapse import CollapseWatch

LEVELS = [f"loss_by_log_snr/{name}" for name in ("low", "middle", "high")]


def course(rows, seed=0):
    """Losses that fall slowly under 20 % noise, as rows."""
    rng = np.random.default_rng(seed)
    for number in range(rows):
        scale = np.exp(-number / 200)
        yield {level: scale * (k + 1) * np.exp(0.2 * rng.standard_normal()) for k, level in enumerate(LEVELS)} | {"loss": 1.0}


def test_an_ordinary_course_is_not_reported():
    for seed in range(10):
        watch = CollapseWatch()
        assert not any(watch.update(row) for row in course(300, seed))


def test_a_jump_at_one_level_is_reported_when_it_happens():
    watch = CollapseWatch()
    reports = []
    for number, row in enumerate(course(100)):
        if number >= 80:
            row[LEVELS[1]] *= 10
        reports.append(watch.update(row))
    assert not any(reports[:80])
    assert len(reports[80]) == 1 and LEVELS[1] in reports[80][0] and "jumped from about" in reports[80][0]


def test_levels_without_images_and_odd_losses_are_passed_over():
    watch = CollapseWatch(warmup=1)
    for row in ({}, {LEVELS[0]: 1.0}, {LEVELS[0]: None}, {LEVELS[0]: float("nan")}, {LEVELS[0]: 0.0}):
        assert watch.update(row) == []
