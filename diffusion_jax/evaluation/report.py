"""One HTML page of what an evaluation found, with everything in it: numbers, charts, pictures, settings, versions."""

from __future__ import annotations

import base64
import json
import logging
import math
import numbers
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffusion_jax.errors import DataError
from diffusion_jax.evaluation.charts import check_charts, curves, trade_off
from diffusion_jax.evaluation.results import Results, Row, flat
from diffusion_jax.files import read_json_lines, replacing
from diffusion_jax.metrics import Interval, distinguishable

_LOG = logging.getLogger(__name__)

DISTANCES = ("fid", "fd_dinov2", "frechet_distance")
_CURVES = (*DISTANCES, "kid", "agreement", "cascade_agreement", "inception_score", "precision", "recall", "held_out_loss",
           "bits_per_dim", "psnr")  # fmt: skip
_AGAINST = ("recall", "inception_score", "agreement", "cascade_agreement", "precision")
_SHOWN = 6  # cases whose pictures are shown, the newest first
_TRAINING = ("loss", "held_out_loss")  # of metrics.jsonl
_POINTS = 400  # of a line of training, at most

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
.best { font-weight: 600; }
.scroll { overflow-x: auto; max-width: 100%; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.charts svg { max-width: 100%; height: auto; }
img { max-width: 100%; image-rendering: pixelated; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 12px; }
small { color: #666; }
"""


def write(results: Results, title: str) -> Path:
    """Write report.html beside the results; its path is returned. Without rows there is nothing to report.

    Raises:
      DataError: no rows, or a folder that cannot be written.
      ConfigError: charts cannot be drawn here.
    """
    if not results.rows:
        raise DataError(f"{results.folder} holds no results to report")
    check_charts()
    path = results.folder / "report.html"
    with results.held(), results.writing(), replacing(path) as temporary:
        temporary.write_text(page(results, title), encoding="utf-8")
    return path


def page(results: Results, title: str) -> str:
    """The page, self-contained."""
    rows = _varied(sorted(results.rows, key=_order))
    counts = sorted({row["num"] for row in rows})
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(rows)} case{'s' * (len(rows) > 1)}, of {' or '.join(f'{count:,}' for count in counts)} samples each. "
        "A Fr&eacute;chet distance falls with the number of samples: compare results of one N. Brackets are 95 % intervals of "
        "what other samples of the same model would give.</p>",
        '<h2 id="results">Results</h2>', _table(rows),
        _verdicts(rows),
        _section("training", "Training", _training_curves(rows)),
        _section("curves", "Over checkpoints", _checkpoint_charts(rows)),
        _section("settings-of-sampling", "Over settings of sampling", _setting_charts(rows)),
        _section("trade-off", "Trade-off over settings of sampling", _trade_offs(rows)),
        '<h2 id="pictures">Pictures</h2>', *(_pictures(results.folder, row) for row in rows[::-1][:_SHOWN]),
        '<h2 id="settings">Settings and versions</h2>', _settings(rows[-1]),
    ]  # fmt: skip
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _natural(values: Sequence[Any]) -> tuple[tuple[bool, float, str], ...]:
    """By which values of a setting are sorted: numbers by size, then texts."""
    real = [isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values]
    return tuple((not is_real, value if is_real else 0.0, str(value)) for is_real, value in zip(real, values, strict=True))


def _order(row: Row) -> Any:
    return row["step"] or 0, [(name, _natural(values)) for name, values in sorted(row["sampling"].items())]


def _varied(rows: Sequence[Row]) -> list[Row]:
    """The rows, without the settings that are the same in all."""
    first = rows[0]["sampling"]
    same = {name for name, value in first.items() if all(row["sampling"].get(name) == value for row in rows)}
    same = same if len(rows) > 1 else set()
    return [{**row, "sampling": {k: v for k, v in row["sampling"].items() if k not in same}} for row in rows]


def name_of(row: Row) -> str:
    """Return a case in words: its checkpoint and what was varied."""
    varied = ", ".join(f"{name} {'/'.join(map(str, values))}" for name, values in row["sampling"].items())
    step = None if row["step"] is None else f"step {'/'.join(map(str, row['checkpoints']))}"
    return ", ".join(part for part in (step, varied) if part) or "samples"


def _table(rows: Sequence[Row]) -> str:
    values = [flat(row["metrics"]) for row in rows]
    names = [name for name in dict.fromkeys(name for each in values for name in each) if not name.endswith("_interval")]
    cells = ["<tr><th>" + "</th><th>".join(map(escape, names)) + "</th></tr>"]
    head = f"<tr><th>case</th>{cells[0][4:]}"
    lines = [
        f"<tr><td>{escape(name_of(row))}</td>" + "".join(f"<td>{_cell(each, name)}</td>" for name in names) + "</tr>"
        for row, each in zip(rows, values, strict=True)
    ]
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>'


def _cell(values: dict[str, Any], name: str) -> str:
    value, interval = values.get(name), values.get(f"{name}_interval")
    if value is None:
        return "&ndash;"
    text = f"{value:.4g}" if isinstance(value, float) else escape(str(value))
    return f"{text} <small>[{interval[0]:.3g}, {interval[1]:.3g}]</small>" if interval else text


def _distance(rows: Sequence[Row]) -> str | None:
    """The distance that all rows have with an interval, if there is one."""
    for name in DISTANCES:
        if all(row["metrics"].get(name) is not None and row["metrics"].get(f"{name}_interval") for row in rows):
            return name
    return None


def _verdicts(rows: Sequence[Row]) -> str:
    """Which case is best by the Frechet distance, and from which the others cannot be told apart."""
    name = _distance(rows)
    if name is None or len(rows) < 2 or len({row["num"] for row in rows}) > 1:
        return ""
    intervals = [Interval(row["metrics"][name], *row["metrics"][f"{name}_interval"]) for row in rows]
    best = min(range(len(rows)), key=lambda index: intervals[index].value)
    same = [
        name_of(row) for index, row in enumerate(rows)
        if index != best and not distinguishable(intervals[best], intervals[index]).differ
    ]  # fmt: skip
    tied = f"It cannot be told apart from: {'; '.join(map(escape, same))}." if same else "All others are worse at 95 %."
    lowest = f"The lowest {escape(name)} is that of <b>{escape(name_of(rows[best]))}</b>, {intervals[best]}."
    return f'<p id="verdict">{lowest} {tied}</p>'


def _training_curves(rows: Sequence[Row]) -> list[str]:
    """A chart of each loss that the runs recorded as they were trained, a line for each run."""
    workdirs = dict.fromkeys(
        stage["workdir"] for row in rows for stage in row["settings"].get("stages", ()) if stage.get("workdir")
    )
    read = {workdir: _recorded(Path(workdir) / "metrics.jsonl") for workdir in workdirs}
    found = []
    for name in _TRAINING:
        series = {Path(workdir).name: points[name] for workdir, points in read.items() if len(points[name]) > 1}
        if series:
            found.append(curves(series, "step", name, markers=False))
    return found


def _recorded(path: Path) -> dict[str, list[tuple[float, float, None]]]:
    """The finite losses of a run by name, (step, mean of the steps about it, None), as far as the file can be read."""
    found: dict[str, list[tuple[float, float, None]]] = {name: [] for name in _TRAINING}
    try:
        for _, line in read_json_lines(path, "the metrics of some steps") if path.exists() else ():
            step = line.get("step")
            for name in _TRAINING:
                value = line.get(name)
                if all(isinstance(x, int | float) and math.isfinite(x) for x in (step, value)):
                    found[name].append((step, value, None))
    except DataError as error:
        _LOG.warning("The report shows training up to there: %s", error)
    return {name: _thinned(points) for name, points in found.items()}


def _thinned(points: list[tuple[float, float, None]]) -> list[tuple[float, float, None]]:
    each = math.ceil(len(points) / _POINTS)
    parts = [points[start : start + each] for start in range(0, len(points), each or 1)]
    return [(part[len(part) // 2][0], math.fsum(value for _, value, _ in part) / len(part), None) for part in parts]


def _checkpoint_charts(rows: Sequence[Row]) -> list[str]:
    """A chart for each metric over checkpoints, a line for each setting."""
    drawn = [row for row in rows if row["step"] is not None]
    return _metric_charts(drawn, lambda row: name_of({**row, "step": None}), lambda row: row["step"], "step")


def _setting_charts(rows: Sequence[Row]) -> list[str]:
    """A chart for each metric over the setting with most values, where they are numbers, at the newest checkpoint."""
    last = _newest(rows)
    name = _most_varied(last)
    if name is None or not all(isinstance(row["sampling"][name][0], int | float) for row in last):
        return []
    return _metric_charts(last, lambda row: _without(row, name), lambda row: row["sampling"][name][0], name)


def _metric_charts(rows: Sequence[Row], line: Callable[[Row], str], across: Callable[[Row], float], x: str) -> list[str]:
    """A chart of each metric that some line has twice; a line for each label, the rows' places given by `across`."""
    found = []
    for name in _CURVES:
        series: dict[str, list[Any]] = {}
        for row in rows:
            value = row["metrics"].get(name)
            if value is not None:
                series.setdefault(line(row), []).append((across(row), value, row["metrics"].get(f"{name}_interval")))
        if any(len({point[0] for point in points}) > 1 for points in series.values()):
            found.append(curves(series, x, name))
    return found


def _newest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the newest checkpoint that has several, if there is one."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row["checkpoints"]), []).append(row)
    return next((group for group in reversed(groups.values()) if len(group) > 1 and group[0]["step"] is not None), [])


def _most_varied(rows: Sequence[Row]) -> str | None:
    """The setting along which lines are drawn: that with most values, of all rows; one line for each value of the others."""
    names = [name for name in (rows[0]["sampling"] if rows else ()) if all(name in row["sampling"] for row in rows)]
    return max(names, key=lambda name: len({str(row["sampling"][name]) for row in rows}), default=None)


def _without(row: Row, name: str | None) -> str:
    """A case in words, without its checkpoint and one of its settings."""
    return name_of({**row, "step": None, "sampling": {k: v for k, v in row["sampling"].items() if k != name}})


def _trade_offs(rows: Sequence[Row]) -> list[str]:
    """The distance against other metrics over settings, at the newest checkpoint that has several."""
    last = _newest(rows)
    along = _most_varied(last)
    distance = next((name for name in DISTANCES if last and all(row["metrics"].get(name) is not None for row in last)), None)
    found = []
    for name in _AGAINST:
        if distance and all(row["metrics"].get(name) is not None for row in last):
            series: dict[str, list[tuple[str, float, float]]] = {}
            for row in last:
                label = "/".join(map(str, row["sampling"][along])) if along else name_of({**row, "step": None})
                point = label, row["metrics"][name], row["metrics"][distance]
                series.setdefault(_without(row, along), []).append(point)
            found.append(trade_off(series, f"{name} (numbers: {along})" if along else name, distance))
    return found


def _section(key: str, title: str, drawn: Sequence[str]) -> str:
    return f'<h2 id="{key}">{title}</h2><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _pictures(folder: Path, row: Row) -> str:
    titles = {"samples": "held-out real images, and samples", "neighbours": "samples, and the training images nearest to each"}
    shown = []
    for name, file in row["pictures"].items():
        path = folder / file
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            title = escape(f"{name_of(row)}: {titles.get(name, name)}")
            shown.append(
                f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="data:image/png;base64,{data}"></figure>'
            )
    return "\n".join(shown)


def _settings(row: Row) -> str:
    shown = {"settings": row["settings"], "versions": row["versions"]}
    return f"<pre>{escape(json.dumps(shown, indent=2))}</pre>"
