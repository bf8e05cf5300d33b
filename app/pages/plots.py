"""/s/STUDY/plots: metrics over layers, distributions over latents, one statistic against another."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import charts, comparisons, discrimination, tables
from app.display.charts import Figure
from app.display.tables import Table
from app.pages.address import PlotQuery, PooledStudy, linker
from app.pages.render import page
from app.study import queries
from app.study.files import StudyPendingError
from app.study.records import Metric, Variant
from app.study.study import Study

router = APIRouter()

SCATTER_LATENTS = 300
"""Points that a scatter plot shows of each variant at a layer."""


@router.get("/s/{study}/plots", name="plots")
def plots(request: Request, study: PooledStudy, query: Annotated[PlotQuery, Query()]) -> Response:
    """The plots of a study."""
    if not study.saes or not study.statistics:
        raise StudyPendingError(study.entry)
    metric = _chosen(study, query.metric, "metric", study.headline)
    x = _chosen(study, query.x, "x", "token_entropy")
    y = _chosen(study, query.y, "y", study.headline)
    of_saes = tables.metric_tables(study)
    (medians,) = tables.statistic_tables(study, [metric], tables.summaries_of(study, [metric]))
    context = {
        "metric": metric,
        "x": x,
        "y": y,
        "over_layers": [(table.metric, _over_layers(table)) for table in of_saes],
        "medians": _over_layers(medians, height=230),
        "tells": _tells(study, metric),
        "distributions": _distributions(study, metric),
        "scatters": _scatters(study, x, y),
        "scatter_latents": SCATTER_LATENTS,
        "sweeps": comparisons.of_study(study, [medians, *of_saes]),
        "options": [(m.metric, m.label) for m in study.statistics],
        "link": linker(request, study, "/plots", {"metric": metric.metric, "x": x.metric, "y": y.metric}),
    }
    return page(request, "plots", context, study)


def _chosen(study: Study, name: str | None, parameter: str, default: str) -> Metric:
    if name is not None:
        return study.statistic(name, parameter)
    return next((metric for metric in study.statistics if metric.metric == default), study.statistics[0])


def _over_layers(table: Table, **layout: Any) -> Figure | None:
    return None if table.empty else charts.by_layer(table.metric, table.curves, table.span, **layout)


def _tells(study: Study, metric: Metric) -> Figure | None:
    """How well the statistic tells trained latents from those of each random variant, by layer."""
    found = [(variant, told) for variant, own in discrimination.tellings(study) for told in own]
    curves = [charts.curve_of(variant, told.points) for variant, told in found if told.name == metric.metric]
    curves = [curve for curve in curves if curve.known]
    half = charts.level(0.5)
    return charts.by_layer(discrimination.AUROC, curves, (0.0, 1.0), height=230, shapes=[half]) if curves else None


def _distributions(study: Study, metric: Metric) -> list[dict[str, Any]]:
    found = tables.distributions(study, metric)
    figures = [charts.distribution(metric, one.edges, one.counts) for one in found]
    charts.share_axes(figures)
    return [
        {"layer": one.layer, "figure": figure, "counts": _counted(study, one)}
        for one, figure in zip(found, figures, strict=True)
    ]


def _counted(study: Study, found: tables.Distribution) -> list[tuple[Variant, int, int]]:
    """For each variant how many latents have a value, of how many."""
    counts = {variant.variant: sum(bins) for variant, bins in found.counts}
    return [
        (study.variant(name), counts.get(name, 0), sum(sae.d_sae for sae in saes))
        for (name, layer), saes in study.places.items()
        if layer == found.layer
    ]


def _scatters(study: Study, x: Metric, y: Metric) -> list[tuple[int, Figure]]:
    rows = queries.sample(study.reader, study.numbers, (x.metric, y.metric), SCATTER_LATENTS)
    figures = []
    for layer in study.layers:
        there = [v for v in study.variants if (v.variant, layer) in study.places]
        figures.append((layer, charts.scatter(x, y, there, [row for row in rows if row["layer"] == layer])))
    charts.share_axes([figure for _, figure in figures])
    return figures
