"""Plots that need no script: curves as positions on a drawing, which templates/macros/svg.html writes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.display.charts import DASHES, SYMBOLS, Curve, Range
from app.study.records import Metric
from core.text import MINUS, number

WIDTH, HEIGHT = 300.0, 180.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 8.0, 6.0, 22.0
"""Margins: figures stand on the left and below."""

PATTERNS = dict(zip(DASHES, ("none", "1.5 3", "5 3", "9 3", "7 3 1.5 3"), strict=True))
"""Plotly's dashes as lengths of strokes and gaps."""

_R = 3.2
SHAPES = dict(zip(SYMBOLS, (
    f"M-{_R} 0a{_R} {_R} 0 1 0 {2 * _R} 0a{_R} {_R} 0 1 0 -{2 * _R} 0z", "M-3 -3h6v6h-6z", "M0 -4L4 0L0 4L-4 0z",
    "M0 -4L3.8 3H-3.8z", "M-3 -3L3 3M3 -3L-3 3", "M0 -4V4M-4 0H4",
    "M0 -4L1 -1H4L1.6 1L2.6 4L0 2.2L-2.6 4L-1.6 1L-4 -1H-1z", "M-3.6 0L-1.8 -3.2H1.8L3.6 0L1.8 3.2H-1.8z",
), strict=True))  # fmt: skip
"""Plotly's marks as paths around the origin."""


@dataclass(frozen=True)
class Scale:
    """From values between two ends to positions between two others; values outside stay at the ends."""

    ends: Range
    places: Range
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        low, high, value = (self._on(x) for x in (*self.ends, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.places[0] + min(1.0, max(0.0, share)) * (self.places[1] - self.places[0])

    def _on(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


@dataclass(frozen=True)
class Drawn:
    """A curve on its drawing: its line, where its marks stand, and its intervals as x, upper and lower end."""

    label: str
    colour: str
    dash: str
    path: str
    shape: str
    hollow: bool
    marks: list[tuple[float, float]]
    bars: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Plot:
    """A drawing of WIDTH by HEIGHT."""

    label: str
    curves: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_title: str
    half: float | None = None


def plot(
    label: str,
    curves: Iterable[Curve],
    metric: Metric,
    ends: Range,
    x_title: str,
    x_values: Sequence[float],
    x_log: bool = False,
    half: bool = False,
) -> Plot:
    """Curves of a metric between `ends`, over an axis with ticks at some of `x_values`; `half` draws a line at 0.5."""
    log_y = metric.scale == "log"
    low, high = (ends[0], ends[1]) if ends[1] > ends[0] else (ends[0] - 0.5, ends[1] + 0.5)
    y = Scale((low, high), (HEIGHT - BOTTOM - 4, TOP + 4), log_y)
    x = Scale((min(x_values), max(x_values)), (LEFT + 10, WIDTH - RIGHT - 10), x_log)
    y_at = _powers(low, high) if log_y else _round_numbers(low, high)
    return Plot(
        label,
        [_drawn(curve, x, y) for curve in curves if curve.known],
        [(x(value), _short(value)) for value in _thinned(x_values)],
        [(y(value), _short(value)) for value in y_at],
        x_title,
        y(0.5) if half else None,
    )


def steps(label: str, curves: Iterable[Curve], metric: Metric, edges: Sequence[float], top: float) -> Plot:
    """Distributions: each curve has a share from every edge to the next, on an axis from 0 to `top`."""
    log = metric.scale == "log"
    x = Scale((edges[0], edges[-1]), (LEFT, WIDTH - RIGHT), log)
    y = Scale((0.0, top or 1.0), (HEIGHT - BOTTOM, TOP + 4))
    ticks = _powers(edges[0], edges[-1]) if log else _round_numbers(edges[0], edges[-1])
    drawn = []
    for curve in curves:
        heights = [float(point["value"]) for point in curve.points]
        path = "".join(f"V{y(h):.1f}H{x(edge):.1f}" for h, edge in zip(heights, edges[1:], strict=True))
        line = f"M{x(edges[0]):.1f} {y(0):.1f}{path}V{y(0):.1f}"
        drawn.append(Drawn(curve.label, curve.colour, PATTERNS[curve.dash], line, "", False, [], []))
    shares = [(y(value), f"{value:.0%}") for value in _round_numbers(0.0, top or 1.0)]
    return Plot(label, drawn, [(x(value), _short(value)) for value in ticks], shares, "")


def _drawn(curve: Curve, x: Scale, y: Scale) -> Drawn:
    places = [(x(point["x"]), y(point["value"])) for point in curve.known]
    bars = [(x(p["x"]), y(p["high"]), y(p["low"])) for p in curve.known if p.get("low") is not None]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    shape = SHAPES.get(curve.mark.removesuffix("-open"), "")
    return Drawn(
        curve.label,
        curve.colour,
        PATTERNS[curve.dash],
        path,
        shape,
        curve.mark.endswith("-open"),
        places if shape else [],
        bars,
    )


def _thinned(values: Sequence[float], most: int = 9) -> list[float]:
    ordered = sorted(set(values))
    return ordered[:: max(1, math.ceil(len(ordered) / most))]


def _round_numbers(low: float, high: float, wanted: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `wanted` of them."""
    rough = (high - low) / wanted
    if not (math.isfinite(rough) and rough > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    return [at * step for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between two values, at most some five."""
    first, last = math.ceil(math.log10(max(low, 1e-12)) - 1e-9), math.floor(math.log10(max(high, 1e-12)) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / 5))
    return [10.0**power for power in range(first, last + 1, every)] or [low, high]


def _short(value: float) -> str:
    """A tick: as few digits as it takes."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.3g}".replace("-", MINUS) if plain else number(value)
