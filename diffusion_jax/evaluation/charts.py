"""Charts as SVG elements: lines with intervals, and trade-offs of two metrics; legends stand beside them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion_jax.errors import ConfigError

_SIZE = (6.4, 3.6)  # of a chart, in inches, without its legend
_LETTER = 0.075  # of a legend, in inches
_STYLES = ("-", "--", ":", "-.")

Series = Mapping[str, Sequence[tuple[float, float, Sequence[float] | None]]]
"""Label -> (x, y, [low, high] of y or None) of each point."""

Labelled = Mapping[str, Sequence[tuple[str, float, float]]]
"""Label -> (label, x, y) of each point, in the order in which a line joins them."""


def check_charts() -> None:
    """Raise a `ConfigError` if charts cannot be drawn here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("the report's charts need matplotlib: pip install 'diffusion_jax[report]', or --noreport") from error


def curves(series: Series, x: str, y: str, markers: bool = True) -> str:
    """Draw lines with intervals as bands, one for each label, each in the order of x; return the SVG element."""
    figure, axes = _figure(x, y, series)
    for (label, points), style in zip(series.items(), _styles(), strict=False):
        points = sorted(points, key=lambda point: point[0])
        marker = "o" if markers else None
        axes.plot([p[0] for p in points], [p[1] for p in points], marker=marker, markersize=4, label=label, **style)
        banded = [p for p in points if p[2] is not None]
        if banded:
            low, high = zip(*(p[2] for p in banded), strict=True)
            axes.fill_between([p[0] for p in banded], low, high, alpha=0.2, color=style["color"], linewidth=0)
            axes.vlines([p[0] for p in banded], low, high, alpha=0.4, color=style["color"], linewidth=1)
    return _svg(figure, series)


def trade_off(series: Labelled, x: str, y: str) -> str:
    """Draw labelled points, those of a label joined in their order; return the SVG element."""
    figure, axes = _figure(x, y, series)
    for (label, points), style in zip(series.items(), _styles(), strict=False):
        axes.plot([p[1] for p in points], [p[2] for p in points], marker="o", markersize=5, label=label, **style)
        for text, across, up in points:
            axes.annotate(text, (across, up), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.margins(0.15)
    return _svg(figure, series)


def _styles() -> Iterator[dict[str, Any]]:
    """Forty lines that can be told apart."""
    for style in _STYLES:
        yield from ({"color": f"C{number}", "linestyle": style, "linewidth": 1.5} for number in range(10))
    yield from _styles()


def _figure(x: str, y: str, labels: Mapping[str, Any]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    beside = _LETTER * max(map(len, labels)) + 0.5 if len(labels) > 1 else 0.0
    figure = Figure(figsize=(_SIZE[0] + beside, max(_SIZE[1], 0.2 * len(labels))), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, labels: Mapping[str, Any]) -> str:
    """The SVG element of a figure; text stays text, so that it can be searched and read aloud."""
    from matplotlib import rc_context

    if len(labels) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()
    return found[found.index("<svg") :]
