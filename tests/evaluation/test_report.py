"""What the page draws: a line for each setting, numbers in the order of their size, training beside evaluation."""

from __future__ import annotations

import json
import re

import pytest

from diffusion_jax.evaluation import charts, report
from diffusion_jax.evaluation.results import Results


def _row(step, guidance, steps, workdir, **metrics):
    settings = {"stages": [{"workdir": str(workdir)}]}
    return {
        "key": f"{step}-{guidance}-{steps}", "step": step, "checkpoints": [step], "num": 500, "pictures": {}, "versions": {},
        "sampling": {"guidance": [guidance], "steps": [steps], "solver": ["ddim"]}, "settings": settings, "seconds": 1.0,
        "metrics": {"frechet_distance": 10.0 * guidance + steps, "recall": 1 / guidance, **metrics},
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Two checkpoints with three guidances of two numbers of steps, in no order."""
    (tmp_path / "run").mkdir()
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 1001)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines) + '{"step": 1001, "lo')
    found = Results(tmp_path / "out", tensorboard=False)
    for step in (1000, 200):
        for guidance, steps in ((10.0, 25), (2.0, 100), (1.5, 25), (10.0, 100), (2.0, 25), (1.5, 100)):
            found.add(_row(step, guidance, steps, tmp_path / "run"))
    return found


@pytest.fixture
def drawn(monkeypatch):
    """The series of each chart, by its axes, without matplotlib."""
    found = {}
    monkeypatch.setattr(report, "check_charts", lambda: None)
    for name in ("curves", "trade_off"):
        monkeypatch.setattr(report, name, lambda series, x, y, **_: found.update({(x, y): series}) or "<svg></svg>")
    return found


def test_two_swept_settings_are_a_line_each(results, drawn):
    report.page(results, "run")
    over = drawn["guidance", "frechet_distance"]
    assert list(over) == ["steps 25", "steps 100"]
    assert [point[:2] for point in over["steps 25"]] == [(1.5, 40.0), (2.0, 45.0), (10.0, 125.0)]
    trade = drawn["recall (numbers: guidance)", "frechet_distance"]
    assert list(trade) == ["steps 25", "steps 100"]
    assert [(text, distance) for text, _, distance in trade["steps 100"]] == [("1.5", 115.0), ("2.0", 120.0), ("10.0", 200.0)]
    assert [step for step, *_ in drawn["step", "frechet_distance"]["guidance 1.5, steps 25"]] == [200, 1000]


def test_rows_are_in_the_order_of_numbers_and_the_table_scrolls(results, drawn):
    page = report.page(results, "run")
    cases = re.findall(r"<tr><td>(.*?)</td>", page)
    assert cases[:3] == [f"step 200, guidance {text}" for text in ("1.5, steps 25", "1.5, steps 100", "2.0, steps 25")]
    assert cases[-1] == "step 1000, guidance 10.0, steps 100"
    assert re.search(r'<div class="scroll"><table>', page) and ".scroll { overflow-x: auto" in page


def test_training_is_on_the_page_as_far_as_it_can_be_read(results, drawn, caplog):
    report.page(results, "run")
    (points,) = drawn["step", "loss"].values()
    assert len(points) <= 400 and points[0][1] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3) and points[-1][0] > 990
    assert "metrics.jsonl, line 1001: not JSON" in caplog.text
    for stage in results.rows[0]["settings"]["stages"]:
        stage["workdir"] += "/gone"
    assert report.page(results, "run")


def test_texts_and_numbers_of_a_setting_have_an_order(results, drawn):
    for steps, solver in ((25, "heun"), (25, None)):
        row = _row(1000, 1.5, steps, "run")
        results.add({**row, "key": f"{solver}", "sampling": {**row["sampling"], "solver": [solver]}})
    assert len(re.findall(r"<tr><td>", report.page(results, "run"))) == 14


def test_legends_stand_beside_the_axes():
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    lines = {f"a long name of line {number}": [(0, 1, None), (1, 2, [1.5, 2.5])] for number in range(12)}
    width = lambda svg: float(re.search(r'width="([\d.]+)pt"', svg)[1])  # noqa: E731
    one, many = charts.curves({"a": lines["a long name of line 0"]}, "x", "y"), charts.curves(lines, "x", "y")
    assert width(many) > width(one) + 80
    places = re.findall(r'id="(axes_1|legend_1)"', many)
    assert places == ["axes_1", "legend_1"]  # the legend is the figure's, not within its axes
    assert "a long name of line 11" in charts.trade_off({name: [("p", 0, 1)] for name in lines}, "x", "y")
