"""Requests of results: kept as they come, and shown on one page in a real browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from diffusion_jax.data.files import write_image
from diffusion_jax.errors import DataError
from diffusion_jax.evaluation import report
from diffusion_jax.evaluation.results import Results, flat
from tests.event_files import events


def make_row(step, guidance, distance, recall, key=None):
    return {
        "key": key or f"{step}-{guidance}", "step": step, "checkpoints": [step],
        "sampling": {"guidance": [guidance], "steps": [8]},
        "num": 500, "pictures": {}, "settings": {"seed": 0}, "versions": {"jax": "0"}, "seconds": 1.0,
        "metrics": {
            "frechet_distance": distance, "frechet_distance_interval": [distance - 0.5, distance + 0.5], "recall": recall,
            "parts": {"prior": float("nan")},
        },
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    found = Results(tmp_path / "out")
    for row in (make_row(100, 1.0, 9.0, 0.9), make_row(100, 3.0, 8.0, 0.5), make_row(200, 1.0, 4.0, 0.8)):
        found.add(row)
    return found


def test_rows_are_read_back_and_replaced(results):
    again = Results(results.folder)
    assert again.rows == results.rows and again.find("100-3.0")["metrics"]["parts"] == {"prior": None}
    again.add(make_row(100, 3.0, 7.0, 0.6))
    assert [row["metrics"]["frechet_distance"] for row in Results(results.folder).rows] == [9.0, 4.0, 7.0]


def test_a_line_that_was_cut_short_is_left_out_and_said(results, caplog):
    lines = results.folder / "results.jsonl"
    lines.write_text(lines.read_text()[:-40])
    assert [row["key"] for row in Results(results.folder).rows] == ["100-1.0", "100-3.0"]
    assert "results.jsonl, line 3, was cut short, as by a killed program" in caplog.text


BAD_LINES = {
    "garbage": ("{]", "line 4: not JSON"),
    "a list": ("[1]", "line 4: a list, where a row of results is an object"),
    "an empty row": ("{}", "line 4: 'key' is missing or of another kind"),
    "metrics": (json.dumps({**make_row(1, 1.0, 1.0, 1.0), "metrics": [1]}), "line 4: 'metrics' is missing or of another kind"),
    "step": (json.dumps({**make_row(1, 1.0, 1.0, 1.0), "step": "1"}), "line 4: 'sampling' or 'step'"),
    "sampling": (json.dumps({**make_row(1, 1.0, 1.0, 1.0), "sampling": {"steps": 3}}), "line 4: 'sampling' or 'step'"),
    "a file elsewhere": (json.dumps({**make_row(1, 1.0, 1.0, 1.0), "pictures": {"a": "/etc/passwd"}}), "line 4: .*passwd"),
    "a way out": (json.dumps({**make_row(1, 1.0, 1.0, 1.0), "pictures": {"a": "pictures/../x"}}), "line 4: .*not all files of"),
    "bytes": (b"\xff\xfe", "results.jsonl cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_is_no_row_is_named(results, name):
    line, message = BAD_LINES[name]
    with (results.folder / "results.jsonl").open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    for reading in (lambda: Results(results.folder), lambda: results.add(make_row(300, 1.0, 1.0, 0.5))):
        with pytest.raises(DataError, match=message) as caught:
            reading()
        assert "\n" not in str(caught.value)


def test_one_evaluation_at_a_time(results):
    """The second is refused while the first lives, and then sees all that the first found; what killed ones left is removed."""
    second = Results(results.folder)
    with results.held():
        with pytest.raises(DataError, match=r"out is being written by process \d+ .*\(evaluating\): wait for it, stop it, or"):
            second.add(make_row(300, 1.0, 3.0, 0.5))
        results.add(make_row(400, 1.0, 2.0, 0.5))
    (results.folder / ".metrics.json.99.tmp").write_text("")
    second.add(make_row(300, 1.0, 3.0, 0.5))
    assert [row["step"] for row in Results(results.folder).rows] == [100, 100, 200, 400, 300]
    assert not list(results.folder.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["metrics.json", "report.html", "results.csv", "cat.png"])
def test_a_folder_that_holds_anything_else_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"holds {name}, which no evaluation wrote there: choose another folder with --out"):
        Results(tmp_path).add(make_row(1, 1.0, 1.0, 0.5))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_what_is_shown_is_of_the_case_that_was_asked_for(results):
    """Picture and tables too; a table of another case does not stay beside its metrics."""
    (results.folder / "pictures").mkdir()
    (results.folder / "tables").mkdir()
    for name in ("pictures/a-samples.png", "tables/a-terms.csv"):
        (results.folder / name).write_text(name)
    files = {"pictures": {"samples": "pictures/a-samples.png"}, "tables": {"terms": "tables/a-terms.csv"}}
    results.add({**make_row(500, 1.0, 1.0, 0.5, key="a"), **files})
    for key, shown in (("a", True), ("100-1.0", False), ("a", True)):
        results.show(results.find(key))
        metrics = json.loads((results.folder / "metrics.json").read_text())
        assert metrics == {**results.find(key)["metrics"], "num_samples": 500, "settings": {"seed": 0}}
        for name, source in (("real_and_samples.png", "pictures/a-samples.png"), ("terms.csv", "tables/a-terms.csv")):
            assert ((results.folder / name).exists() and (results.folder / name).read_text() == source) == shown


def test_a_report_is_replaced_whole_or_not_at_all(results, monkeypatch):
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    (results.folder / "report.html").write_text("before")

    def cut_short(path, text, **more):
        path.write_bytes(text[:10].encode())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pathlib.Path.write_text", cut_short)
        report.write(results, "run")
    assert (results.folder / "report.html").read_text() == "before" and not list(results.folder.glob(".*.tmp"))
    assert "<svg" in report.write(results, "run").read_text()


def test_the_table_for_other_programs(results):
    with (results.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["guidance"], row["frechet_distance"], row["parts.prior"]) for row in rows] == [
        ("100", "1.0", "9.0", ""), ("100", "3.0", "8.0", ""), ("200", "1.0", "4.0", ""),
    ]  # fmt: skip


def test_tensorboard_has_a_run_for_each_setting(results):
    found = events(results.folder / "tensorboard" / "guidance_1.0-steps_8")
    scalars = [(event.step, value.simple_value, value.tag) for event in found for value in event.summary.value]
    assert [each[:2] for each in scalars if each[2] == "frechet_distance"] == [(100, 9.0), (200, 4.0)]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to"):
        with Results(tmp_path / "file" / "out").held():
            pass
    with pytest.raises(DataError, match="no results to report"):
        report.write(Results(tmp_path / "empty"), "nothing")


def test_nested_numbers():
    assert flat({"a": {"b": 1, "c": {"d": 2}}}) == {"a.b": 1, "a.c.d": 2}


def test_the_page_names_the_best_and_what_cannot_be_told_from_it(results):
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    text = report.page(results, "A <run>")
    assert "A &lt;run&gt;" in text and "3 cases, of 500 samples each" in text
    verdict = re.search(r'<p id="verdict">(.*?)</p>', text)[1]
    assert "<b>step 200, guidance 1.0</b>" in verdict and "All others are worse" in verdict
    results.add(make_row(200, 3.0, 4.3, 0.5))
    assert "cannot be told apart from: step 200, guidance 3.0." in report.page(results, "run")


def test_the_page_in_a_browser(results, tmp_path):
    """Charts, the table and the pictures are drawn with sizes, and no script or file beside the page is needed."""
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a Chromium on the path")
    (results.folder / "pictures").mkdir()
    write_image(results.folder / "pictures" / "a.png", np.zeros((40, 30, 1), np.uint8))
    results.add({**make_row(200, 3.0, 4.3, 0.5), "pictures": {"samples": "pictures/a.png"}})
    page = report.write(results, "run").rename(tmp_path / "moved.html")
    measure = """<script>addEventListener("load", () => {
        const drawn = [...document.querySelectorAll("svg, img, table")]
        const wide = e => e.getBoundingClientRect().width > 20 && (e.naturalWidth ?? 30) === 30
        const section = e => e.closest(".charts")?.previousSibling.id ?? ""
        document.title = JSON.stringify(drawn.map(e => [e.tagName, section(e), wide(e)]))
    })</script>"""
    page.write_text(page.read_text().replace("</body>", measure + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
    kinds = [(tag.lower(), section) for tag, section, good in found if good]
    assert len(kinds) == len(found) and ("table", "") in kinds and ("img", "") in kinds
    assert kinds.count(("svg", "curves")) == 2 and kinds.count(("svg", "trade-off")) == 1
