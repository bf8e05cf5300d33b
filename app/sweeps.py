"""Variants that differ in one number, such as `scale:0.5` and `scale:2`: metrics as plots over that number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app import charts
from app.charts import Curve, Figure
from app.records import COLOURS, Metric, Variant
from app.studies import Study
from app.tables import Table

FEWEST = 3
"""Values that make a sweep."""


@dataclass(frozen=True)
class Sweep:
    """Variants of one prefix, by their number, smallest first."""

    prefix: str
    variants: list[tuple[float, Variant]]

    @property
    def log(self) -> bool:
        """Whether the numbers stand on a logarithmic axis: all are above zero."""
        return self.variants[0][0] > 0


def sweeps(variants: Sequence[Variant]) -> list[Sweep]:
    """The sweeps among some variants."""
    found: dict[str, list[tuple[float, Variant]]] = {}
    for variant in variants:
        prefix, _, text = variant.variant.rpartition(":")
        try:
            value = float(text)
        except ValueError:
            continue
        if prefix and math.isfinite(value):
            found.setdefault(prefix, []).append((value, variant))
    long_enough = {prefix: values for prefix, values in found.items() if len(values) >= FEWEST}
    return [Sweep(prefix, sorted(v, key=lambda pair: pair[0])) for prefix, v in long_enough.items()]


def sweep_curves(sweep: Sweep, table: Table) -> list[Curve]:
    """For each layer a line over the sweep, and a dotted one at the trained variant's value."""
    values = {variant.variant: value for value, variant in sweep.variants}
    curves = []
    for at, line in enumerate(table.lines):
        colour, mark = f"v{at % COLOURS}", charts.SYMBOLS[at % len(charts.SYMBOLS)]
        points = [c.point(values[c.variant.variant]) for c in line.cells if c.variant.variant in values]
        curves.append(Curve(line.title, colour, points, "solid", mark))
        ends = sweep.variants[0][0], sweep.variants[-1][0]
        trained = [c for c in line.cells if c.variant.is_trained]
        flat = [{"x": x, "value": cell.value} for cell in trained for x in ends]
        curves.append(Curve(f"{line.title}, trained", colour, flat, "dot", ""))
    return curves


def has_values(sweep: Sweep, table: Table) -> bool:
    """Whether some variant of the sweep has a value."""
    names = {variant.variant for _, variant in sweep.variants}
    return any(c.value is not None and c.variant.variant in names for line in table.lines for c in line.cells)


def sweep_figure(sweep: Sweep, table: Table) -> Figure:
    """A metric over the sweep."""
    x = {"type": "log" if sweep.log else "linear", "title": charts.title(sweep.prefix), "tickformat": "~g",
         "tickvals": [value for value, _ in sweep.variants]}  # fmt: skip
    return charts.curves(table.metric, sweep_curves(sweep, table), table.span, x, height=230)


def of_study(study: Study, tables: Sequence[Table]) -> list[tuple[Sweep, list[tuple[Metric, Figure]]]]:
    """For every sweep of a study a plot of each of some tables that has values."""
    return [
        (sweep, [(table.metric, sweep_figure(sweep, table)) for table in tables if has_values(sweep, table)])
        for sweep in sweeps(study.variants)
    ]
