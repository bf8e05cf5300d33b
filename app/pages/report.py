"""A study as one HTML file that needs nothing else: every model, hook and layer, over all seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from app.display import charts, comparisons, discrimination, specifications, svg
from app.display.charts import Curve, curve_of
from app.display.discrimination import Heatmap, Tellings
from app.display.specifications import SpecificationCurve, curves_of
from app.display.tables import Cell, Line, Table
from app.errors import PageError
from app.pages.render import STATIC, environment
from app.study import queries
from app.study.axes import Setting, settings
from app.study.files import Database, Entry, Row
from app.study.records import Metric, Sae, Variant
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
class Share:
    """Latents of a variant at a layer: how many there are, live, and were scored; the others by their state."""

    variant: Variant
    layer: int
    latents: int
    alive: int
    scored: int
    others: dict[str, int]


@dataclass(frozen=True)
class Group:
    """All SAEs of one model, hook and name: they differ in variant, layer and seeds."""

    study: Study
    setting: Setting
    saes: list[Sae]

    @property
    def model(self) -> str:
        """The transformer."""
        return self.setting.model

    @property
    def hook(self) -> str:
        """Where in a layer the SAEs read."""
        return self.setting.hook

    @property
    def name(self) -> str:
        """The kind of SAE."""
        return self.setting.name

    @property
    def numbers(self) -> list[int]:
        """The SAEs' numbers."""
        return [sae.sae for sae in self.saes]

    @property
    def layers(self) -> list[int]:
        """The layers that have an SAE."""
        return sorted({sae.layer for sae in self.saes})

    @property
    def draws(self) -> int:
        """How often random variants were drawn."""
        return len({sae.variant_seed for sae in self.saes})

    @property
    def seeds(self) -> int:
        """How often each SAE was trained."""
        return len({sae.sae_seed for sae in self.saes})

    @cached_property
    def tells(self) -> Tellings:
        """Which statistic can tell, by random variant."""
        return discrimination.tellings(self.study, _pooled_tells(queries.tells(self.study.reader, self.numbers)))

    @cached_property
    def curves(self) -> list[SpecificationCurve]:
        """Who scores higher, in how many protocols: over the pairs of all seeds."""
        return curves_of(self.study, self.numbers)

    @cached_property
    def heatmap(self) -> Heatmap | None:
        """The same at a glance, where there are many random variants."""
        return discrimination.heatmap(self.tells, self.layers, MOST_COLUMNS)

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
        """The metrics of the SAEs: means over the seeds, with the smallest and the largest."""
        rows: dict[tuple[str, str, int], list[Row]] = {}
        places = {sae.sae: (sae.variant, sae.layer) for sae in self.saes}
        for row in queries.sae_metrics(self.study.reader, self.numbers):
            rows.setdefault((row["metric"], *places[row["sae"]]), []).append(row)
        here = self.setting
        found = queries.differences(self.study.reader, here.model, here.hook, here.name)
        differences = {(row["metric"], row["variant"], row["layer"]): row for row in found}
        tables = []
        for metric in self.study.metrics:
            table = Table(metric)
            for layer in self.layers:
                keys = [(variant, (metric.metric, variant.variant, layer)) for variant in self.study.variants]
                cells = [_mean(v, rows.get(key, []), differences.get(key)) for v, key in keys]
                table.lines.append(Line(f"L{layer}", f"layer {layer}", layer, cells))
            tables.append(table)
        return self._with_plots(tables)

    @cached_property
    def _summaries(self) -> Mapping[queries.Place, Row]:
        names = [metric.metric for metric in self.study.statistics]
        return queries.pooled_summaries(self.study.reader, self.numbers, names)

    @cached_property
    def _medians(self) -> list[Table]:
        tables = []
        for metric in self.study.statistics:
            table = Table(metric)
            for layer in self.layers:
                cells = [_median(v, metric, self._summaries.get((v.variant, layer))) for v in self.study.variants]
                table.lines.append(Line(f"L{layer}", f"layer {layer}", layer, cells))
            tables.append(table)
        return tables

    @cached_property
    def scores(self) -> list[tuple[Table, svg.Plot]]:
        """How well explanations hold: medians over the latents of all seeds, with quartiles."""
        return self._with_plots(table for table in self._medians if table.metric.is_score)

    @property
    def by_number(self) -> dict[int, Sae]:
        """The SAEs by their numbers."""
        return {sae.sae: sae for sae in self.saes}

    @cached_property
    def all_scores(self) -> list[Row]:
        """Every scorer's, SAE by SAE."""
        return queries.scores(self.study.reader, self.numbers)

    @cached_property
    def statistics(self) -> list[tuple[Table, svg.Plot]]:
        """All other statistics of latents."""
        return self._with_plots(table for table in self._medians if not table.metric.is_score)

    @cached_property
    def shares(self) -> list[Share]:
        """Which share of latents qualifies for a score, and why the others do not."""
        states = queries.pooled_states(self.study.reader, self.numbers)
        found = []
        for variant in self.study.variants:
            for layer in self.layers:
                row = self._summaries.get((variant.variant, layer))
                if row is not None:
                    counts = dict(states.get((variant.variant, layer), {}))
                    scored = counts.pop("scored", 0)
                    found.append(Share(variant, layer, row["latents"], row["alive"], scored, counts))
        return found

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
        found = []
        for sweep in comparisons.sweeps(self.study.variants):
            plots = [(t, _sweep_plot(sweep, t)) for t in tables if comparisons.has_values(sweep, t)]
            found.append((sweep, plots))
        return found

    def _with_plots(self, tables: Iterable[Table]) -> list[tuple[Table, svg.Plot]]:
        return [(t, self._over_layers(t.metric, t.curves, t.span)) for t in tables if not t.empty]

    def _over_layers(self, metric: Metric, curves: Sequence[Curve], span: charts.Range, half: bool = False) -> svg.Plot:
        label = f"{metric.label} by layer"
        return svg.plot(label, curves, metric, span, "layer", self.layers, half=half)

    def _distribution(self, metric: Metric) -> list[tuple[int, svg.Plot]]:
        log = metric.scale == "log"
        reader = self.study.reader
        ends = queries.bounds(reader, self.numbers, metric.metric, positive=log)
        if ends is None:
            return []
        ends = charts.span(metric, ends)
        places = {sae.sae: (sae.variant, sae.layer) for sae in self.saes}
        counts: dict[tuple[str, int], list[int]] = {}
        for row in queries.distribution(reader, self.numbers, metric.metric, ends, charts.BINS, log):
            counts.setdefault(places[row["sae"]], [0] * charts.BINS)[row["bin"]] += row["latents"]
        shares = {place: [n / sum(bins) for n in bins] for place, bins in counts.items()}
        top = max((max(bins) for bins in shares.values()), default=1.0)
        edges = charts.bin_edges(metric, ends)
        plots = []
        for layer in _some(self.layers):
            own = [(v, shares[v.variant, layer]) for v in self.study.variants if (v.variant, layer) in shares]
            curves = [curve_of(v, [{"x": at, "value": h} for at, h in enumerate(bins)]) for v, bins in own]
            plots.append((layer, svg.steps(f"{metric.label} at layer {layer}", curves, metric, edges, top)))
        return plots


def groups_of(study: Study) -> list[Group]:
    """The study's groups, in its order."""
    found: dict[tuple[str, str, str], Group] = {}
    for setting in settings(study.all_saes):
        key = (setting.model, setting.hook, setting.name)
        if key not in found:
            saes = [sae for sae in study.all_saes if (sae.model, sae.hook, sae.name) == key]
            found[key] = Group(study.at(setting), setting, saes)
    return list(found.values())


def _pooled_tells(rows: Iterable[Row]) -> list[Row]:
    """One row for each variant, layer and statistic; over several seeds the mean with the smallest and the largest."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("variant", "layer", "statistic", "matched"))
        found.setdefault(key, []).append(row)
    return [_one_tell(same) for same in found.values()]


def _one_tell(rows: list[Row]) -> Row:
    known = [row["auroc"] for row in rows if row["auroc"] is not None]
    if len(known) < 2:
        return next((row for row in rows if row["auroc"] is not None), rows[0]) | {"seeds": len(known)}
    sums = {name: sum(row[name] for row in rows) for name in ("trained", "random")}
    return rows[0] | sums | {"auroc": fmean(known), "low": min(known), "high": max(known), "seeds": len(known)}


def _mean(variant: Variant, rows: Sequence[Row], difference: Row | None) -> Cell:
    values = [row["value"] for row in rows if row["value"] is not None]
    if not values:
        reason = next((row["reason"] for row in rows if row["reason"]), "Not applicable." if rows else "")
        return Cell(variant, None, note=reason)
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Cell(variant, fmean(values), low, high, difference=difference)


def _median(variant: Variant, metric: Metric, row: Row | None) -> Cell:
    if row is None:
        return Cell(variant, None)
    low, middle, high = row[f"quartiles {metric.metric}"] or (None, None, None)
    share = row[f"count {metric.metric}"] / row["latents"] if row["latents"] else None
    return Cell(variant, middle, low, high, share=share, note="" if middle is not None else "No latent has a value.")


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
            study = Study(Entry(database.stem, database, None), reader, row)
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
        "across": _across(study, groups),
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


def _across(study: Study, groups: list[Group]) -> list[tuple[str, list[tuple[comparisons.Compared, svg.Plot]]]]:
    """For each hook and SAE that several models have: their plots by depth, at the first seeds."""
    found = []
    for setting in settings(study.all_saes):
        first = next((g for g in groups if (g.hook, g.name) == (setting.hook, setting.name)), None)
        if first is None or setting != first.setting:
            continue
        models = comparisons.models_beside(study.at(setting))
        if len(models) > 1:
            plots = [(one, _depth_plot(one)) for one in comparisons.compared(models)]
            found.append((f"{setting.hook} · {setting.name}", plots))
    return found


def _depth_plot(one: comparisons.Compared) -> svg.Plot:
    metric = one.table.metric
    depths = [0, 0.25, 0.5, 0.75, 1]
    return svg.plot(f"{metric.label} by depth", one.curves, metric, one.table.span, "layer / layers", depths)
