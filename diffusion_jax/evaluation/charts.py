"""Charts of results as SVG: metrics over training, and one metric against another over settings of sampling."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.errors import ConfigError

Series = Mapping[str, Sequence[tuple[float, float, Sequence[float] | None]]]
"""Label -> (x, y, [low, high] of y or None) of each point."""

_SIZE = (6.4, 3.6)  # inches


def check() -> None:
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
