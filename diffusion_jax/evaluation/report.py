"""One HTML page of what an evaluation found, with everything in it: numbers, charts, pictures, settings, versions."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.evaluation.results import Results, Row, flat
from diffusion_jax.files import replacing
from diffusion_jax.metrics import Interval, distinguishable

DISTANCES = ("fid", "fd_dinov2", "frechet_distance")
_CURVES = (*DISTANCES, "kid", "agreement", "cascade_agreement", "inception_score", "precision", "recall", "held_out_loss",
           "bits_per_dim", "psnr")  # fmt: skip
_AGAINST = ("recall", "inception_score", "agreement", "cascade_agreement", "precision")
_SHOWN = 6  # cases whose pictures are shown, the newest first

_SIZE = (6.4, 3.6)  # of a chart, in inches

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.best { font-weight: 600; }
.scroll { overflow-x: auto; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.charts svg { max-width: 34rem; height: auto; }
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
    rows = _varied(sorted(results.rows, key=lambda row: (row["step"] or 0, str(row["sampling"]))))
    counts = sorted({row["num"] for row in rows})
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(rows)} case{'s' * (len(rows) > 1)}, of {' or '.join(f'{count:,}' for count in counts)} samples each. "
        "A Fr&eacute;chet distance falls with the number of samples: compare results of one N. Brackets are 95 % intervals of "
        "what other samples of the same model would give.</p>",
        '<h2 id="results">Results</h2>', _table(rows),
        _verdicts(rows),
        _section("curves", "Over training", _training_charts(rows)),
        _section("trade-off", "Trade-off over settings of sampling", _trade_offs(rows)),
        '<h2 id="pictures">Pictures</h2>', *(_pictures(results.folder, row) for row in rows[::-1][:_SHOWN]),
        '<h2 id="settings">Settings and versions</h2>', _settings(rows[-1]),
    ]  # fmt: skip
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


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


def _training_charts(rows: Sequence[Row]) -> list[str]:
    """A chart for each metric over checkpoints, a line for each setting."""
    found = []
    for name in _CURVES:
        series: dict[str, list[Any]] = {}
        for row in rows:
            value = row["metrics"].get(name)
            if value is not None and row["step"] is not None:
                label = name_of({**row, "step": None})
                series.setdefault(label, []).append((row["step"], value, row["metrics"].get(f"{name}_interval")))
        if any(len(points) > 1 for points in series.values()):
            found.append(curves(series, "step", name))
    return found


def _trade_offs(rows: Sequence[Row]) -> list[str]:
    """The distance against other metrics over settings, at the newest checkpoint that has several."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row["checkpoints"]), []).append(row)
    last = next((group for group in reversed(groups.values()) if len(group) > 1 and group[0]["step"] is not None), [])
    distance = next((name for name in DISTANCES if last and all(row["metrics"].get(name) is not None for row in last)), None)
    found = []
    for name in _AGAINST:
        if distance and all(row["metrics"].get(name) is not None for row in last):
            points = [(name_of({**row, "step": None}), row["metrics"][name], row["metrics"][distance]) for row in last]
            found.append(trade_off(points, name, distance))
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


Series = Mapping[str, Sequence[tuple[float, float, Sequence[float] | None]]]
"""Label -> (x, y, [low, high] of y or None) of each point."""


def check_charts() -> None:
    """Raise a `ConfigError` if charts cannot be drawn here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("the report's charts need matplotlib: pip install 'diffusion_jax[report]', or --noreport") from error


def curves(series: Series, x: str, y: str) -> str:
    """Lines with intervals as bands, one for each label; the SVG element."""
    figure, axes = _figure(x, y)
    for label, points in series.items():
        points = sorted(points, key=lambda point: point[0])
        line = axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", markersize=4, label=label)[0]
        banded = [p for p in points if p[2] is not None]
        if banded:
            low, high = zip(*(p[2] for p in banded), strict=True)
            axes.fill_between([p[0] for p in banded], low, high, alpha=0.2, color=line.get_color(), linewidth=0)
            axes.vlines([p[0] for p in banded], low, high, alpha=0.4, color=line.get_color(), linewidth=1)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def trade_off(points: Sequence[tuple[str, float, float]], x: str, y: str) -> str:
    """Labelled points (label, x, y), joined in their order; the SVG element."""
    figure, axes = _figure(x, y)
    axes.plot([p[1] for p in points], [p[2] for p in points], marker="o", markersize=5, linewidth=1, color="tab:blue")
    for label, across, up in points:
        axes.annotate(label, (across, up), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.margins(0.15)
    return _svg(figure)


def _figure(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    """The SVG element of a figure; text stays text, so that it can be searched and read aloud."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()
    return found[found.index("<svg") :]
