"""Models beside each other by relative depth, and metrics of variants that differ in one number, such as `scale:2`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.display import charts
from app.display.charts import Curve, Figure
from app.display.tables import Line, Table, metric_tables, statistic_tables, summaries_of
from app.study import axes, queries
from app.study.records import COLOURS, Metric, Variant
from app.study.study import Study

ACROSS = ("token_entropy", "explained_variance", "ce_loss_recovered", "token_identity_r2")
"""What is compared across models, after the scores of contexts of one kind."""


@dataclass(frozen=True)
class Compared:
    """A metric of all models: a table with a line a model and layer, a curve for each model and variant."""

    table: Table
    curves: list[Curve]

    @property
    def figure(self) -> charts.Figure:
        """Its plot over the depth in the model."""
        x = {"title": charts.title("layer / layers"), "range": [-0.05, 1.05]}
        return charts.curves(self.table.metric, self.curves, self.table.span, x, height=230)


@dataclass(frozen=True)
class Model:
    """The study at one model, and how many layers that has."""

    name: str
    study: Study
    layers: int


def models_beside(study: Study) -> list[Model]:
    """The study at each model that has SAEs, all else as it is."""
    if study.setting is None:
        return []
    layers = {row["model"]: row["n_layers"] for row in queries.models(study.reader)}
    known, here = axes.settings(study.all_saes), study.setting
    names = dict.fromkeys(setting.model for setting in known if replace(here, model=setting.model) in known)
    return [Model(name, study.at(replace(here, model=name)), layers[name]) for name in names]


def compared(models: Sequence[Model]) -> list[Compared]:
    """The scores, and the metrics and statistics in ACROSS that the study has."""
    lines: dict[Metric, list[Line]] = {}
    for model in models:
        for table in _tables(model.study):
            lines.setdefault(table.metric, []).extend(_renamed(line, model) for line in table.lines)
    tables = [Table(metric, lines[metric]) for metric in _metrics(models)]
    return [Compared(table, _curves(table, models)) for table in tables if not table.empty]


def _tables(study: Study) -> list[Table]:
    wanted = [metric for metric in study.statistics if metric.one_pool or metric.metric in ACROSS]
    return [*metric_tables(study), *statistic_tables(study, wanted, summaries_of(study, wanted))]


def _renamed(line: Line, model: Model) -> Line:
    cells = [replace(cell, difference=None) for cell in line.cells]
    return Line(f"{model.name} {line.head}", f"{model.name}, {line.title} of {model.layers}", line.layer, cells)


def _metrics(models: Sequence[Model]) -> list[Metric]:
    known: Mapping[str, Metric] = {m.metric: m for one in models for m in (*one.study.metrics, *one.study.statistics)}
    scores = [metric for metric in known.values() if metric.one_pool]
    return [*scores, *(known[name] for name in ACROSS if name in known)]


def _curves(table: Table, models: Sequence[Model]) -> list[Curve]:
    """A line a model and variant: the variant's colour, the model's dash and mark."""
    found, start = [], 0
    for at, model in enumerate(models):
        lines = table.lines[start : start + len(model.study.layers)]
        start += len(lines)
        for variant, cells in Table(table.metric, lines).by_variant:
            points = [cell.point(line.layer / model.layers) for line, cell in zip(lines, cells, strict=True)]
            dash, mark = charts.DASHES[at % len(charts.DASHES)], charts.SYMBOLS[at % len(charts.SYMBOLS)]
            found.append(Curve(f"{model.name}, {variant.label}", variant.colour, points, dash, mark))
    return found


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
