"""Tables of a study: what its pages and the report show, with the SAEs of a variant and layer as a cell."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from app.display.charts import BINS, Curve, Range, bin_edges, curve_of, span
from app.study import queries
from app.study.files import Row
from app.study.queries import Place
from app.study.records import Metric, Variant
from app.study.study import Study


@dataclass(frozen=True)
class Cell:
    """A number of the SAEs of one place: a mean from the smallest to the largest, or a median with the middle half.

    `difference` is the row of `differences` for its place: random minus trained, over the seeds.
    """

    variant: Variant
    value: float | None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    note: str = ""
    difference: Row | None = None

    def point(self, x: float) -> Row:
        """Its point of a curve."""
        return {"x": x, "value": self.value} | ({} if self.low is None else {"low": self.low, "high": self.high})


@dataclass(frozen=True)
class Line:
    """A row of a table: a layer, named in short and in full, with a cell a variant."""

    head: str
    title: str
    layer: int
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """One metric: a line a layer."""

    metric: Metric
    lines: list[Line]

    @property
    def empty(self) -> bool:
        """Whether no cell has a value."""
        return all(cell.value is None for line in self.lines for cell in line.cells)

    @property
    def curves(self) -> list[Curve]:
        """A line a variant, over layers."""
        layers = [line.layer for line in self.lines]
        return [
            curve_of(variant, [cell.point(layer) for layer, cell in zip(layers, cells, strict=True)])
            for variant, cells in self.by_variant
        ]

    @cached_property
    def span(self) -> Range:
        """The ends of its axis: intervals and all."""
        points = [cell.point(0) for line in self.lines for cell in line.cells]
        return span(self.metric, [point.get(key) for point in points for key in ("value", "low", "high")])

    def at(self, cell: Cell) -> float | None:
        """Where a cell's value stands on the axis, 0 to 1."""
        value, (low, high), log = cell.value, self.span, self.metric.scale == "log"
        if value is None or high <= low or (log and min(value, low) <= 0):
            return None
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    @property
    def differs(self) -> bool:
        """Whether there is an interval of a difference between random and trained."""
        return any(c.difference and c.difference["status"] == "ok" for line in self.lines for c in line.cells)

    @property
    def by_variant(self) -> list[tuple[Variant, list[Cell]]]:
        """The same turned round: a row a variant that is there, a cell a layer."""
        rows = [list(cells) for cells in zip(*(line.cells for line in self.lines), strict=True)]
        return [(cells[0].variant, cells) for cells in rows if any(c.value is not None or c.note for c in cells)]


def metric_tables(study: Study) -> list[Table]:
    """Every metric of the SAEs that are shown, with the difference between random and trained over all seeds."""
    rows = {
        (row["metric"], row["variant"], row["layer"]): row for row in queries.sae_metrics(study.reader, study.numbers)
    }
    here = study.setting
    found = queries.differences(study.reader, here.model, here.hook, here.name) if here else []
    differences = {(row["metric"], row["variant"], row["layer"]): row for row in found}
    return [
        _table(
            study,
            metric,
            {
                place: _mean(variant, rows.get((metric.metric, *place)), differences.get((metric.metric, *place)))
                for place, variant in _places(study)
            },
        )
        for metric in study.metrics
    ]


def statistic_tables(study: Study, metrics: Iterable[Metric], summaries: Mapping[Place, Row]) -> list[Table]:
    """The medians of statistics of latents, with their quartiles; `summaries` are those of `summaries_of`."""
    return [
        _table(
            study, metric, {place: _median(variant, metric, summaries.get(place)) for place, variant in _places(study)}
        )
        for metric in metrics
    ]


def summaries_of(study: Study, metrics: Iterable[Metric]) -> dict[Place, Row]:
    """How many latents there are and live, and the quartiles of statistics."""
    return queries.summaries(study.reader, study.numbers, [metric.metric for metric in metrics])


def _places(study: Study) -> list[tuple[Place, Variant]]:
    return [((variant.variant, layer), variant) for layer in study.layers for variant in study.variants]


def _table(study: Study, metric: Metric, cells: Mapping[Place, Cell]) -> Table:
    lines = []
    for layer in study.layers:
        own = [cells[variant.variant, layer] for variant in study.variants]
        lines.append(Line(f"L{layer}", f"layer {layer}", layer, own))
    return Table(metric, lines)


def _mean(variant: Variant, row: Row | None, difference: Row | None) -> Cell:
    if row is None:
        return Cell(variant, None, difference=difference)
    note = row["reason"] if row["value"] is None else ""
    return Cell(variant, row["value"], row["low"], row["high"], note=note, difference=difference)


def _median(variant: Variant, metric: Metric, row: Row | None) -> Cell:
    if row is None:
        return Cell(variant, None)
    low, middle, high = row[f"quartiles {metric.metric}"] or (None, None, None)
    share = row[f"count {metric.metric}"] / row["latents"] if row["latents"] else None
    return Cell(variant, middle, low, high, share, note="" if middle is not None else "No latent has a value.")


@dataclass(frozen=True)
class Share:
    """Latents of a variant at a layer: how many there are, live, and were scored; the others by their state."""

    variant: Variant
    layer: int
    latents: int
    alive: int
    scored: int
    others: dict[str, int]

    def of_latents(self, count: int) -> float | None:
        """A count as a share of all."""
        return count / self.latents if self.latents else None


def shares(study: Study, summaries: Mapping[Place, Row]) -> list[Share]:
    """Which share of latents qualifies for a score, and why the others do not."""
    states = queries.score_states(study.reader, study.numbers)
    found = []
    for name, layer in study.places:
        row, counts = summaries.get((name, layer), {"latents": 0, "alive": 0}), dict(states.get((name, layer), {}))
        scored = counts.pop("scored", 0)
        found.append(Share(study.variant(name), layer, row["latents"], row["alive"], scored, counts))
    return found


@dataclass(frozen=True)
class Distribution:
    """How many latents of each variant at a layer have a statistic in which bin, between edges that layers share."""

    metric: Metric
    layer: int
    edges: list[float]
    counts: list[tuple[Variant, list[int]]]

    @property
    def shares(self) -> list[tuple[Variant, list[float]]]:
        """The same as shares of the latents that have a value."""
        return [(variant, [n / sum(bins) for n in bins]) for variant, bins in self.counts]


def distributions(study: Study, metric: Metric) -> list[Distribution]:
    """The distribution of a statistic at every layer; nothing where no latent has a value."""
    log = metric.scale == "log"
    ends = queries.bounds(study.reader, study.numbers, metric.metric, positive=log)
    if ends is None:
        return []
    ends = span(metric, ends)
    counts: dict[Place, list[int]] = {}
    for row in queries.distribution(study.reader, study.numbers, metric.metric, ends, BINS, log):
        counts.setdefault((row["variant"], row["layer"]), [0] * BINS)[row["bin"]] = row["latents"]
    edges = bin_edges(metric, ends)
    return [
        Distribution(
            metric,
            layer,
            edges,
            [(v, counts[v.variant, layer]) for v in study.variants if (v.variant, layer) in counts],
        )
        for layer in study.layers
    ]
