"""/s/STUDY/plots: metrics over layers, distributions over latents, one statistic against another."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import charts, comparisons, discrimination, tables
from app.display.charts import Figure
from app.display.comparisons import Sweep
from app.pages.address import OpenStudy, PlotQuery, linker
from app.pages.render import page
from app.study import queries
from app.study.files import Row, StudyPendingError
from app.study.records import Metric, Sae, Variant
from app.study.study import Study

router = APIRouter()

SCATTER_LATENTS = 300
"""Points that a scatter plot shows of each SAE."""


@router.get("/s/{study}/plots", name="plots")
def plots(request: Request, study: OpenStudy, query: Annotated[PlotQuery, Query()]) -> Response:
    """The plots of a study."""
    if not study.saes or not study.statistics:
        raise StudyPendingError(study.entry)
    metric = _chosen(study, query.metric, "metric", study.headline)
    x = _chosen(study, query.x, "x", "token_entropy")
    y = _chosen(study, query.y, "y", study.headline)
    context = {
        "metric": metric,
        "x": x,
        "y": y,
        "over_layers": _over_layers(study),
        "medians": _medians(study, metric),
        "tells": _tells(study, metric),
        "distributions": _distributions(study, metric),
        "scatters": _scatters(study, x, y),
        "scatter_latents": SCATTER_LATENTS,
        "sweeps": _sweeps(study, metric),
        "options": [(m.metric, m.label) for m in study.statistics],
        "link": linker(request, study, "/plots", {"metric": metric.metric, "x": x.metric, "y": y.metric}),
    }
    return page(request, "plots", context, study)


def _chosen(study: Study, name: str | None, parameter: str, default: str) -> Metric:
    if name is not None:
        return study.statistic(name, parameter)
    return next((metric for metric in study.statistics if metric.metric == default), study.statistics[0])


def _sweeps(study: Study, metric: Metric) -> list[tuple[Sweep, list[tuple[Metric, Figure]]]]:
    if not comparisons.sweeps(study.variants):
        return []
    summaries = queries.summaries(study.reader, study.numbers, [metric.metric])
    chosen = tables.statistic_table(metric, tables.places_of(study), summaries)
    return comparisons.of_study(study, [chosen, *tables.metric_tables(study)])


def _pairs(study: Study, layer: int) -> list[tuple[Sae, Variant]]:
    return [(sae, study.variant(sae.variant)) for sae in study.saes if sae.layer == layer]


def _over_layers(study: Study) -> list[tuple[Metric, Figure | None]]:
    saes = {sae.sae: sae for sae in study.saes}
    rows = queries.sae_metrics(study.reader, study.numbers)
    found: list[tuple[Metric, Figure | None]] = []
    for metric in study.metrics:
        points: dict[str, list[Row]] = {}
        for row in rows:
            if row["metric"] == metric.metric and row["value"] is not None:
                sae = saes[row["sae"]]
                points.setdefault(sae.variant, []).append({"x": sae.layer, "value": row["value"]})
        ends = charts.span(metric, [point["value"] for line in points.values() for point in line])
        found.append((metric, charts.by_layer(metric, study.variants, points, ends) if points else None))
    return found


def _medians(study: Study, metric: Metric) -> Figure | None:
    summaries = queries.summaries(study.reader, study.numbers, [metric.metric])
    points: dict[str, list[Row]] = {}
    for sae in study.saes:
        quartiles = summaries.get(sae.sae, {}).get(f"quartiles {metric.metric}")
        if quartiles and quartiles[1] is not None:
            low, middle, high = quartiles
            row = {"x": sae.layer, "value": middle, "low": low, "high": high}
            points.setdefault(sae.variant, []).append(row)
    ends = charts.span(metric, [p[key] for line in points.values() for p in line for key in ("low", "high")])
    return charts.by_layer(metric, study.variants, points, ends, height=230) if points else None


def _tells(study: Study, metric: Metric) -> Figure | None:
    """How well the statistic tells trained latents from those of each random variant, by layer."""
    found = discrimination.tellings(study, queries.tells(study.reader, study.numbers))
    points = {variant.variant: told.points for variant, own in found for told in own if told.name == metric.metric}
    points = {variant: rows for variant, rows in points.items() if any(row["value"] is not None for row in rows)}
    if not points:
        return None
    half = charts.level(0.5)
    return charts.by_layer(discrimination.AUROC, study.variants, points, (0.0, 1.0), height=230, shapes=[half])


def _distributions(study: Study, metric: Metric) -> list[dict[str, Any]]:
    log = metric.scale == "log"
    ends = queries.bounds(study.reader, study.numbers, metric.metric, positive=log)
    if ends is None:
        return []
    ends = charts.span(metric, ends)
    rows = queries.distribution(study.reader, study.numbers, metric.metric, ends, bins=charts.BINS, log=log)
    figures = [(layer, charts.distributions(metric, _pairs(study, layer), rows, ends)) for layer in study.layers]
    charts.share_axes([figure for _, figure in figures])
    counted = {sae.sae: sum(row["latents"] for row in rows if row["sae"] == sae.sae) for sae in study.saes}
    return [
        {
            "layer": layer,
            "figure": figure,
            "counts": [(variant, counted[sae.sae], sae.d_sae) for sae, variant in _pairs(study, layer)],
        }
        for layer, figure in figures
    ]


def _scatters(study: Study, x: Metric, y: Metric) -> list[tuple[int, Figure]]:
    rows = queries.sample(study.reader, study.numbers, (x.metric, y.metric), SCATTER_LATENTS)
    figures = [(layer, charts.scatter(x, y, _pairs(study, layer), rows)) for layer in study.layers]
    charts.share_axes([figure for _, figure in figures])
    return figures
