"""Tables of a study at one setting: what the overview and the report show, an SAE a cell."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from app.display.charts import Curve, Range, curve_of, span
from app.study import queries
from app.study.files import Row
from app.study.records import Metric, Sae, Variant
from app.study.study import Study


@dataclass(frozen=True)
class Cell:
    """A number of one SAE; `at` is where it stands on its metric's axis, 0 to 1.

    `difference` is the row of `differences` for its place: random minus trained, over the seeds.
    """

    variant: Variant
    value: float | None
    low: float | None = None
    high: float | None = None
    at: float | None = None
    share: float | None = None
    note: str = ""
    difference: Row | None = None

    def point(self, x: float) -> Row:
        """Its point of a curve."""
        return {"x": x, "value": self.value} | ({} if self.low is None else {"low": self.low, "high": self.high})


Place: TypeAlias = tuple[str, str, int, list[tuple[Variant, Sae | None]]]
"""A line of a table before it has numbers: head, title, layer, and for each variant its SAE."""
Places: TypeAlias = list[Place]


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
    lines: list[Line] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether no SAE has a value."""
        return all(cell.value is None for line in self.lines for cell in line.cells)

    @property
    def curves(self) -> list[Curve]:
        """A line a variant, over layers."""
        layers = [line.layer for line in self.lines]
        return [
            curve_of(variant, [cell.point(layer) for layer, cell in zip(layers, cells, strict=True)])
            for variant, cells in self.by_variant
        ]

    @property
    def span(self) -> Range:
        """The ends of its axis: intervals and all."""
        points = [cell.point(0) for line in self.lines for cell in line.cells]
        return span(self.metric, [point.get(key) for point in points for key in ("value", "low", "high")])

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
    """Every metric of the setting's SAEs, with the difference between random and trained."""
    rows = {(row["sae"], row["metric"]): row for row in queries.sae_metrics(study.reader, study.numbers)}
    differences = {(row["metric"], row["variant"], row["layer"]): row for row in _differences(study)}
    return [metric_table(metric, places_of(study), rows, differences) for metric in study.metrics]


def statistic_tables(study: Study, summaries: Mapping[int, Row]) -> list[Table]:
    """The median of every statistic of latents, with its quartiles."""
    return [statistic_table(metric, places_of(study), summaries) for metric in study.statistics]


def places_of(study: Study) -> Places:
    """A line a layer of the setting."""
    saes = {(sae.variant, sae.layer): sae for sae in study.saes}
    return [
        (f"L{layer}", f"layer {layer}", layer, [(v, saes.get((v.variant, layer))) for v in study.variants])
        for layer in study.layers
    ]


def _differences(study: Study) -> list[Row]:
    here = study.setting
    return queries.differences(study.reader, here.model, here.hook, here.name) if here else []


def metric_table(
    metric: Metric,
    places: Places,
    rows: Mapping[tuple[int, str], Row],
    differences: Mapping[tuple[str, str, int], Row] | None = None,
) -> Table:
    """The table of a metric of SAEs; `rows` are those of `queries.sae_metrics`, by SAE and metric."""
    ends = span(metric, [row["value"] for (_, name), row in rows.items() if name == metric.metric])
    table = Table(metric)
    for head, title, layer, saes in places:
        cells = []
        for variant, sae in saes:
            row = rows.get((sae.sae, metric.metric)) if sae else None
            value = row["value"] if row else None
            note = (row["reason"] or "Not applicable.") if row and row["status"] != "ok" else ""
            difference = (differences or {}).get((metric.metric, variant.variant, layer))
            cells.append(Cell(variant, value, at=_at(metric, value, ends), note=note, difference=difference))
        table.lines.append(Line(head, title, layer, cells))
    return table


def statistic_table(metric: Metric, places: Places, summaries: Mapping[int, Row]) -> Table:
    """The table of a statistic's medians; `summaries` are those of `queries.summaries`."""
    quartiles = [row[f"quartiles {metric.metric}"] or [None] * 3 for row in summaries.values()]
    ends = span(metric, [value for row in quartiles for value in row])
    table = Table(metric)
    for head, title, layer, saes in places:
        cells = [_median(metric, v, summaries.get(sae.sae) if sae else None, ends) for v, sae in saes]
        table.lines.append(Line(head, title, layer, cells))
    return table


def _median(metric: Metric, variant: Variant, summary: Row | None, ends: tuple[float, float]) -> Cell:
    if summary is None:
        return Cell(variant, None)
    low, middle, high = summary[f"quartiles {metric.metric}"] or (None, None, None)
    share = summary[f"count {metric.metric}"] / summary["latents"] if summary["latents"] else None
    note = "No latent has a value." if middle is None else ""
    return Cell(variant, middle, low, high, _at(metric, middle, ends), share, note)


def _at(metric: Metric, value: float | None, ends: tuple[float, float]) -> float | None:
    low, high = ends
    if value is None or high <= low or (metric.scale == "log" and min(value, low) <= 0):
        return None
    if metric.scale == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def score_counts(study: Study) -> dict[int, dict[str, int]]:
    """How many latents of each SAE are in which state of scoring."""
    counts: dict[int, dict[str, int]] = {}
    for row in queries.score_states(study.reader, study.numbers):
        counts.setdefault(row["sae"], {})[row["score_state"]] = row["latents"]
    return counts
