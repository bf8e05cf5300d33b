"""Plotly figures as plain dictionaries; static/app.js draws them and turns `var(--…)` into the theme's colours."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from app.display.contexts import boxed
from app.study.files import Row
from app.study.records import Metric, Variant

Figure: TypeAlias = dict[str, Any]
Range: TypeAlias = tuple[float, float]

BINS = 40
"""Bins of a distribution over latents."""

DASHES = ("solid", "dot", "dash", "longdash", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon")


def symbol(variant: Variant) -> str:
    """A variant's mark: another one, hollow or not, where its colour comes round again."""
    return SYMBOLS[(variant.position + variant.round) % len(SYMBOLS)] + ("-open" if variant.round == 1 else "")


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it reads a little HTML in its labels."""
    return boxed(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figure(traces: list[Figure], x: Figure, y: Figure, height: int, **layout: Any) -> Figure:
    """A figure in the house style: no frame, quiet grid, the page's font and colours."""
    axis = {
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--line)",
        "linecolor": "var(--line-strong)",
        "tickfont": {"color": "var(--muted)", "size": 11},
        "automargin": True,
    }
    return {
        "data": traces,
        "layout": {
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": False,
            "hovermode": "closest",
            "dragmode": False,
            "font": {"color": "var(--ink)", "size": 12},
            "hoverlabel": {"bgcolor": "var(--raised)", "bordercolor": "var(--line-strong)"},
            "xaxis": {**axis, **x},
            "yaxis": {**axis, **y},
            **layout,
        },
    }


def title(text: str) -> Figure:
    """An axis title."""
    return {"text": plain(text), "font": {"color": "var(--muted)", "size": 11}, "standoff": 6}


def heights(histogram: Row) -> list[float]:
    """Share of a latent's active tokens per unit of activation, for each bin: comparable when bins differ in width."""
    counts: Sequence[int] = histogram["counts"]
    total, width = sum(counts), histogram["upper"] / max(1, len(counts))
    return [count / total / width if total and width else 0.0 for count in counts]


def activation_histogram(histogram: Row, colour: str, x_end: float, y_end: float) -> Figure:
    """One latent's activations, on axes that the caller may share with another latent."""
    counts: Sequence[int] = histogram["counts"]
    width = histogram["upper"] / max(1, len(counts))
    bars = {
        "type": "bar",
        "x": [(at + 0.5) * width for at in range(len(counts))],
        "y": heights(histogram),
        "width": [width] * len(counts),
        "customdata": [[f"{at * width:.3g} to {(at + 1) * width:.3g}", count] for at, count in enumerate(counts)],
        "hovertemplate": "activation %{customdata[0]}<br>%{customdata[1]:,} tokens<extra></extra>",
        "marker": {"color": f"var(--{colour})", "line": {"width": 0}},
    }
    return figure(
        [bars],
        {"range": [0, x_end * 1.02], "title": title("activation")},
        {"range": [0, y_end * 1.05], "title": title("share per unit"), "nticks": 4},
        height=150,
        bargap=0,
    )


@dataclass(frozen=True)
class Curve:
    """A line of a plot; `points` have `x`, `value` and perhaps `low` and `high`. Without a `mark` it is bare."""

    label: str
    colour: str
    points: list[Row]
    dash: str = "solid"
    mark: str = "circle"

    @property
    def known(self) -> list[Row]:
        """The points that have a value, from left to right."""
        return sorted((p for p in self.points if p["value"] is not None), key=lambda point: float(point["x"]))


def curve_of(variant: Variant, points: list[Row]) -> Curve:
    """A variant's line, in its colour."""
    return Curve(variant.label, variant.colour, points, DASHES[variant.position % 5], symbol(variant))


def by_layer(metric: Metric, lines: Sequence[Curve], span: Range, height: int = 190, **layout: Any) -> Figure:
    """A metric over layers, a line a variant."""
    layers = sorted({point["x"] for line in lines for point in line.known})
    x = {"title": title("layer"), "tickvals": layers, "range": _padded(layers)}
    return curves(metric, lines, span, x, height, **layout)


def level(y: float) -> Figure:
    """A shape: a dashed line across the plot."""
    line = {"color": "var(--line-strong)", "width": 1, "dash": "dash"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def curves(metric: Metric, lines: Iterable[Curve], span: Range, x: Figure, height: int, **layout: Any) -> Figure:
    """Lines of a metric between the ends of `span`, over the axis `x`."""
    log = metric.scale == "log"
    ends = [math.log10(max(end, 1e-12)) for end in span] if log else list(span)
    pad = (ends[1] - ends[0]) * 0.06 or 0.1
    y = {"type": metric.scale, "range": [ends[0] - pad, ends[1] + pad], "nticks": 5, "tickformat": "~g"}
    return figure([_trace(line) for line in lines if line.known], x, y, height, **layout)


def _padded(layers: Sequence[int]) -> list[float]:
    if not layers:
        return [0, 1]
    pad = max(0.5, (layers[-1] - layers[0]) * 0.08)
    return [layers[0] - pad, layers[-1] + pad]


def _trace(curve: Curve) -> Figure:
    points = curve.known
    trace: Figure = {
        "type": "scatter",
        "mode": "lines+markers" if curve.mark else "lines",
        "name": plain(curve.label),
        "x": [point["x"] for point in points],
        "y": [point["value"] for point in points],
        "line": {"color": f"var(--{curve.colour})", "width": 2, "dash": curve.dash},
        "marker": {"size": 8, "symbol": curve.mark or "circle"},
        "hovertemplate": "%{fullData.name}<br>%{xaxis.title.text} %{x}: %{y:.4~g}<extra></extra>",
    }
    if any("low" in point for point in points):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [point.get("high", point["value"]) - point["value"] for point in points],
            "arrayminus": [point["value"] - point.get("low", point["value"]) for point in points],
            "thickness": 1.2,
            "width": 4,
        }
    return trace


def span(metric: Metric, values: Iterable[float | None]) -> Range:
    """The ends of a metric's axis: its own bounds where it has them and the values keep to them."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if metric.scale == "log":
        known = [value for value in known if value > 0]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    low = low if metric.lower is None or metric.scale == "log" else min(low, metric.lower)
    high = high if metric.upper is None or metric.scale == "log" else max(high, metric.upper)
    return low, high


def distribution(metric: Metric, edges: Sequence[float], counts: Iterable[tuple[Variant, Sequence[int]]]) -> Figure:
    """Shares of latents in the bins between `edges`, a stepped line a variant."""
    middle = [(a * b) ** 0.5 if metric.scale == "log" else (a + b) / 2 for a, b in pairwise(edges)]
    return figure(
        [_steps(variant, middle, bins) for variant, bins in counts],
        {"type": metric.scale, "title": title(axis_label(metric)), "nticks": 7, "tickformat": "~g"},
        {"rangemode": "tozero", "tickformat": ".0%", "title": title("share of latents"), "nticks": 5},
        height=230,
    )


def bin_edges(metric: Metric, ends: Range) -> list[float]:
    """Edges of the bins of a distribution, equal on the metric's own scale."""
    log = metric.scale == "log"
    low, high = (math.log10(ends[0]), math.log10(ends[1])) if log else ends
    edges = [low + (high - low) * at / BINS for at in range(BINS + 1)]
    return [10**edge for edge in edges] if log else edges


def _steps(variant: Variant, x: list[float], counts: Sequence[int]) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(variant.label),
        "x": x,
        "y": [count / sum(counts) for count in counts],
        "customdata": list(counts),
        "line": {
            "shape": "hvh",
            "width": 1.8,
            "color": f"var(--{variant.colour})",
            "dash": DASHES[variant.position % 5],
        },
        "fill": "tozeroy",
        "fillcolor": f"var(--{variant.colour}-soft)",
        "hovertemplate": "%{fullData.name}<br>near %{x:.3~g}: %{y:.1%} (%{customdata:,} latents)<extra></extra>",
    }


def scatter(x: Metric, y: Metric, variants: Iterable[Variant], rows: Sequence[Row]) -> Figure:
    """Latents as points over two statistics, a colour and a symbol a variant."""
    traces = []
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant.variant]
        traces.append(
            {
                "type": "scattergl" if len(own) > 5000 else "scatter",
                "mode": "markers",
                "name": plain(variant.label),
                "x": [row["x"] for row in own],
                "y": [row["y"] for row in own],
                "customdata": [row["latent"] for row in own],
                "marker": {
                    "size": 5,
                    "opacity": 0.55,
                    "symbol": symbol(variant),
                    "color": f"var(--{variant.colour})",
                },
                "hovertemplate": "%{fullData.name} #%{customdata}<br>%{x:.3~g}, %{y:.3~g}<extra></extra>",
            }
        )
    return figure(
        traces,
        {"type": x.scale, "title": title(axis_label(x)), "tickformat": "~g", "nticks": 7},
        {"type": y.scale, "title": title(axis_label(y)), "tickformat": "~g", "nticks": 7},
        height=300,
    )


def axis_label(metric: Metric) -> str:
    """The metric's label, with its unit."""
    return f"{metric.label} ({metric.unit})" if metric.unit else metric.label


def share_axes(figures: Sequence[Figure]) -> None:
    """Give several figures the same axes, from the data of all: what stands beside each other must be comparable."""
    for axis in ("x", "y"):
        values = [value for f in figures for trace in f["data"] for value in trace[axis]]
        log = bool(figures) and figures[0]["layout"][f"{axis}axis"].get("type") == "log"
        values = [math.log10(value) if log else value for value in values if not log or value > 0]
        if values:
            low, high = min(values), max(values)
            pad = (high - low) * 0.04 or 0.1
            start = 0.0 if axis == "y" and not log and low == 0 else low - pad
            for f in figures:
                f["layout"][f"{axis}axis"]["range"] = [start, high + pad]
