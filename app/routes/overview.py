"""/s/STUDY: what the study is, every metric by variant and layer, and where it all came from."""

import math
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app import queries
from app.charts import span
from app.db import Row
from app.records import Metric, Variant
from app.render import page
from app.studies import Studies, Study

router = APIRouter()


@dataclass(frozen=True)
class Cell:
    """A number of one SAE; `at` is where it stands on its metric's axis, 0 to 1."""

    variant: Variant
    value: float | None
    low: float | None = None
    high: float | None = None
    at: float | None = None
    share: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Telling:
    """A statistic against one random variant: by layer, the rows of `tells`, plain and matched on firing density."""

    label: str
    metric: Metric | None
    layers: dict[int, dict[bool, Row]]

    @property
    def distance(self) -> float:
        """How far its matched AUROC comes from one half at any layer."""
        found = [rows[True]["auroc"] for rows in self.layers.values() if True in rows]
        return max((abs(auroc - 0.5) for auroc in found if auroc is not None), default=0.0)


@dataclass(frozen=True)
class Table:
    """One metric: a row a layer, a cell a variant."""

    metric: Metric
    rows: list[tuple[int, list[Cell]]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether no SAE has a value."""
        return all(cell.value is None for _, cells in self.rows for cell in cells)


@router.get("/s/{study}", name="overview")
def overview(request: Request, study: str) -> Response:
    """The overview of a study."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        summaries = queries.summaries(opened.reader, [metric.metric for metric in opened.statistics])
        context = {
            "scores": [t for m in opened.statistics if (t := _statistic(opened, m, summaries)) and _is_score(m)],
            "statistics": [
                t for m in opened.statistics if (t := _statistic(opened, m, summaries)) and not _is_score(m)
            ],
            "tables": _metrics(opened),
            "tells": _tells(opened, queries.tells(opened.reader)),
            "summaries": summaries,
            "score_counts": _score_counts(opened),
            "models": queries.models(opened.reader),
            "provenance": queries.provenance(opened.reader),
            "timings": queries.timings(opened.reader),
            "tensors": queries.tensors(opened.reader),
        }
        return page(request, "overview", context, opened)


@router.get("/s/{study}/tensors", name="tensors")
def tensors(request: Request, study: str) -> Response:
    """Every weight tensor with the hash of what was run."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        rows = queries.tensors(opened.reader, kinds=False)
        return page(request, "tensors", {"rows": rows}, opened)


def _is_score(metric: Metric) -> bool:
    return metric.metric.startswith(("detection_", "fuzzing_"))


def _metrics(study: Study) -> list[Table]:
    rows = {(row["sae"], row["metric"]): row for row in queries.sae_metrics(study.reader)}
    return [_metric(study, metric, rows) for metric in study.metrics]


def _metric(study: Study, metric: Metric, rows: dict[tuple[int, str], Row]) -> Table:
    ends = span(metric, [row["value"] for (_, name), row in rows.items() if name == metric.metric])
    table = Table(metric)
    for layer in study.layers:
        cells = []
        for variant in study.variants:
            row = rows.get((_sae_number(study, variant, layer), metric.metric))
            value = row["value"] if row else None
            note = (row["reason"] or "Not applicable.") if row and row["status"] != "ok" else ""
            cells.append(Cell(variant, value, at=_at(metric, value, ends), note=note))
        table.rows.append((layer, cells))
    return table


def _statistic(study: Study, metric: Metric, summaries: dict[int, Row]) -> Table:
    quartiles = [row[f"quartiles {metric.metric}"] or [None] * 3 for row in summaries.values()]
    ends = span(metric, [value for row in quartiles for value in row])
    table = Table(metric)
    for layer in study.layers:
        cells = [_median(metric, v, summaries.get(_sae_number(study, v, layer)), ends) for v in study.variants]
        table.rows.append((layer, cells))
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


def _sae_number(study: Study, variant: Variant, layer: int) -> int:
    return next((s.sae for s in study.saes if (s.variant, s.layer) == (variant.variant, layer)), -1)


def _score_counts(study: Study) -> dict[int, dict[str, int]]:
    counts: dict[int, dict[str, int]] = {}
    for row in queries.score_states(study.reader):
        counts.setdefault(row["sae"], {})[row["score_state"]] = row["latents"]
    return counts


def _tells(study: Study, rows: list[Row]) -> list[tuple[Variant, list[Telling]]]:
    """By random variant, all statistics together first, then those that tell best."""
    metrics = {metric.metric: metric for metric in study.statistics}
    found: dict[str, dict[str, Telling]] = {}
    for row in rows:
        name = row["statistic"]
        metric = metrics.get(name)
        label = metric.label if metric else "all together, logistic regression"
        telling = found.setdefault(row["variant"], {}).setdefault(name, Telling(label, metric, {}))
        telling.layers.setdefault(row["layer"], {})[row["matched"]] = row
    return [
        (study.variant(variant), sorted(tellings.values(), key=lambda t: (t.metric is not None, -t.distance)))
        for variant, tellings in found.items()
    ]
