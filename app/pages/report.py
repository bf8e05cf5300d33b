"""A study as one HTML file that needs nothing else: every model, hook and layer, over all seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.display import charts, comparisons, discrimination, specifications, svg, tables
from app.display.charts import Curve, curve_of
from app.display.discrimination import Heatmap, Tellings
from app.display.specifications import SpecificationCurve, curves_of
from app.display.tables import Share, Table
from app.errors import PageError
from app.pages.render import STATIC, environment
from app.study import queries
from app.study.axes import ALL, POOL, Setting, settings
from app.study.files import Database, Entry, Row
from app.study.records import Metric
from app.study.study import Study
from core.errors import UserError
from core.files import replacing

DISTRIBUTIONS = ("density", "token_entropy", "top_token_share", "max_activation", "best_match_correlation")
"""Statistics whose whole distribution is shown, beside the scores of contexts of one kind."""
MOST_LAYERS = 6
"""Layers of which distributions are shown: the first, the last, and some between."""

MOST_COLUMNS = 18
"""Columns of a heatmap that a sheet of paper has room for."""


@dataclass(frozen=True)
class Group:
    """The study at one model, hook and name of SAEs, all seeds together."""

    study: Study
    setting: Setting

    @cached_property
    def tells(self) -> Tellings:
        """Which statistic can tell, by random variant."""
        return discrimination.tellings(self.study)

    @cached_property
    def curves(self) -> list[SpecificationCurve]:
        """Who scores higher, in how many protocols: over the pairs of all seeds."""
        return curves_of(self.study)

    @cached_property
    def heatmap(self) -> Heatmap | None:
        """The same at a glance, where there are many random variants."""
        return discrimination.heatmap(self.tells, self.study.layers, MOST_COLUMNS)

    @cached_property
    def tell_plots(self) -> list[tuple[str, svg.Plot]]:
        """A plot a statistic, a line a random variant: those that tell best first, all together before them."""
        curves: dict[str, list[Curve]] = {}
        order: dict[str, float] = {}
        for variant, found in self.tells:
            for told in found:
                curves.setdefault(told.label, []).append(curve_of(variant, told.points))
                best = 1.0 if told.metric is None else told.distance
                order[told.label] = max(order.get(told.label, 0.0), best)
        labels = sorted(curves, key=lambda label: -order[label])
        return [
            (label, self._over_layers(discrimination.AUROC, curves[label], (0.0, 1.0), half=True)) for label in labels
        ]

    @cached_property
    def metrics(self) -> list[tuple[Table, svg.Plot]]:
        """The metrics of the SAEs."""
        return self._with_plots(tables.metric_tables(self.study))

    @cached_property
    def _summaries(self) -> Mapping[queries.Place, Row]:
        return tables.summaries_of(self.study, self.study.statistics)

    @cached_property
    def _medians(self) -> list[tuple[Table, svg.Plot]]:
        return self._with_plots(tables.statistic_tables(self.study, self.study.statistics, self._summaries))

    @property
    def scores(self) -> list[tuple[Table, svg.Plot]]:
        """How well explanations hold."""
        return [(table, plot) for table, plot in self._medians if table.metric.is_score]

    @property
    def statistics(self) -> list[tuple[Table, svg.Plot]]:
        """All other statistics of latents."""
        return [(table, plot) for table, plot in self._medians if not table.metric.is_score]

    @property
    def all_scores(self) -> list[Row]:
        """Every scorer's."""
        return queries.scores(self.study.reader, self.study.numbers)

    @property
    def shares(self) -> list[Share]:
        """Which share of latents qualifies for a score, and why the others do not."""
        return tables.shares(self.study, self._summaries)

    @cached_property
    def distributions(self) -> list[tuple[Metric, list[tuple[int, svg.Plot]]]]:
        """Key statistics, a plot a layer, on the same axes."""
        shown = [m for m in self.study.statistics if m.one_pool or m.metric in DISTRIBUTIONS]
        found = [(metric, self._distribution(metric)) for metric in shown]
        return [(metric, plots) for metric, plots in found if plots]

    @cached_property
    def sweeps(self) -> list[tuple[comparisons.Sweep, list[tuple[Table, svg.Plot]]]]:
        """Metrics over the variants that differ in one number."""
        tables = [table for table, _ in (*self.scores, *self.metrics)]
        return [
            (sweep, [(t, _sweep_plot(sweep, t)) for t in tables if comparisons.has_values(sweep, t)])
            for sweep in comparisons.sweeps(self.study.variants)
        ]

    def _with_plots(self, tables: Iterable[Table]) -> list[tuple[Table, svg.Plot]]:
        return [(t, self._over_layers(t.metric, t.curves, t.span)) for t in tables if not t.empty]

    def _over_layers(self, metric: Metric, curves: Sequence[Curve], span: charts.Range, half: bool = False) -> svg.Plot:
        label = f"{metric.label} by layer"
        return svg.plot(label, curves, metric, span, "layer", self.study.layers, half=half)

    def _distribution(self, metric: Metric) -> list[tuple[int, svg.Plot]]:
        found = tables.distributions(self.study, metric)
        top = max((max(shares) for one in found for _, shares in one.shares), default=1.0)
        shown = _some(self.study.layers)
        plots = []
        for one in found:
            if one.layer in shown:
                curves = [curve_of(v, [{"x": at, "value": h} for at, h in enumerate(own)]) for v, own in one.shares]
                label = f"{metric.label} at layer {one.layer}"
                plots.append((one.layer, svg.steps(label, curves, metric, one.edges, top)))
        return plots


def groups_of(study: Study) -> list[Group]:
    """The study's groups, in its order."""
    found: dict[tuple[str, str, str], Group] = {}
    for setting in settings(study.all_saes):
        key = (setting.model, setting.hook, setting.name)
        if key not in found:
            found[key] = Group(study.at(setting), setting)
    return list(found.values())


def _some(layers: Sequence[int]) -> list[int]:
    """At most MOST_LAYERS of some layers, evenly spread, both ends among them."""
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    step = (len(layers) - 1) / (MOST_LAYERS - 1)
    return [layers[round(at * step)] for at in range(MOST_LAYERS)]


def _sweep_plot(sweep: comparisons.Sweep, table: Table) -> svg.Plot:
    values = [value for value, _ in sweep.variants]
    curves = comparisons.sweep_curves(sweep, table)
    label = f"{table.metric.label} over {sweep.prefix}"
    return svg.plot(label, curves, table.metric, table.span, sweep.prefix, values, x_log=sweep.log)


QUERY_SECONDS = 600.0
"""A query of the report that takes longer is stopped."""


def write_report(database: Path, out: Path) -> None:
    """Write the report of the study in `database` to `out`, whole or not at all.

    Raises UserError when the study cannot be read or the file cannot be written.
    """
    text = _report(database)
    try:
        with replacing(out) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write '{out}': {error.strerror}. Choose another file with --out.") from error


def _report(database: Path) -> str:
    if not database.is_file():
        raise UserError(f"There is no study at '{database}'. Give the .duckdb file that `lineup run` leaves.")
    opened = Database(QUERY_SECONDS)
    try:
        with opened.reading(database.absolute()) as reader:
            row = queries.study(reader)
            if row is None:
                raise UserError(f"'{database}' holds no study: its table `study` is empty. Run the study again.")
            study = Study(Entry(database.stem, database, None), reader, row, {POOL.key: ALL}, pools=True)
            return environment().get_template("report.html").render(**_context(study))
    except PageError as error:
        raise UserError(f"{error.message} {error.advice}") from error
    finally:
        opened.close()


def _context(study: Study) -> dict[str, Any]:
    reader = study.reader
    groups = groups_of(study)
    return {
        "css": (STATIC / "app.css").read_text(encoding="utf-8"),
        "study": study,
        "models": queries.models(reader),
        "keys": [(variant, _key(curve_of(variant, []))) for variant in study.variants],
        "groups": groups,
        "axes": specifications.CHOICES,
        "across": _across(groups),
        "outcomes": queries.outcomes(reader),
        "metrics": [*study.metrics, *study.statistics],
        "provenance": queries.provenance(reader),
        "weights": queries.weights(reader),
        "timings": queries.stage_totals(reader),
        "seconds": sum(row["seconds"] for row in queries.stage_totals(reader)),
    }


def _key(curve: Curve) -> svg.Drawn:
    shape = svg.SHAPES[curve.mark.removesuffix("-open")]
    hollow = curve.mark.endswith("-open")
    return svg.Drawn(curve.label, curve.colour, svg.PATTERNS[curve.dash], "", shape, hollow, [], [])


def _across(groups: list[Group]) -> list[tuple[str, list[tuple[comparisons.Compared, svg.Plot]]]]:
    """For each hook and SAE that several models have: their plots by depth."""
    firsts = {(group.setting.hook, group.setting.name): group for group in reversed(groups)}
    found = []
    for group in groups:
        models = comparisons.models_beside(group.study)
        if group in firsts.values() and len(models) > 1:
            plots = [(one, _depth_plot(one)) for one in comparisons.compared(models)]
            found.append((f"{group.setting.hook} · {group.setting.name}", plots))
    return found


def _depth_plot(one: comparisons.Compared) -> svg.Plot:
    metric = one.table.metric
    depths = [0, 0.25, 0.5, 0.75, 1]
    return svg.plot(f"{metric.label} by depth", one.curves, metric, one.table.span, "layer / layers", depths)
