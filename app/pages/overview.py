"""/s/STUDY: what the study is, every metric by variant and layer, and where it all came from."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import comparisons, discrimination, specifications, tables
from app.errors import bad_request
from app.pages.address import OverviewQuery, PooledStudy, linker
from app.pages.render import page
from app.study import queries
from app.study.study import Study

router = APIRouter()


@router.get("/s/{study}", name="overview")
def overview(request: Request, study: PooledStudy, query: Annotated[OverviewQuery, Query()]) -> Response:
    """The overview of a study."""
    summaries = tables.summaries_of(study, study.statistics)
    beside = comparisons.models_beside(study)
    found = tables.statistic_tables(study, study.statistics, summaries)
    context = {
        "scores": [t for t in found if t.metric.is_score],
        "statistics": [t for t in found if not t.metric.is_score],
        "tables": tables.metric_tables(study),
        "link": linker(request, study, "", query.model_dump()),
        "across": comparisons.compared(beside) if len(beside) > 1 else [],
        "shares": tables.shares(study, summaries),
        "all_scores": queries.scores(study.reader, study.numbers),
        "models": queries.models(study.reader),
        "provenance": queries.provenance(study.reader),
        "timings": queries.timings(study.reader, study.setting.model if study.setting else None, study.numbers),
        "tensors": queries.tensors(study.reader, study.numbers),
        "curves": specifications.curves_of(study),
        "axes": specifications.CHOICES,
    }
    return page(request, "overview", context | _tells(study, query), study)


def _tells(study: Study, query: OverviewQuery) -> dict[str, Any]:
    """Which statistic can tell: each random variant in full or, of many, all at a glance and the one that is asked for.

    Raises a PageError for a layer or variant that is not there.
    """
    found = discrimination.tellings(study)
    layers, most = study.layers, discrimination.MOST_COLUMNS
    if query.layer is not None:
        layers = [layer for layer in layers if layer == query.layer]
    glance = discrimination.heatmap(found, layers, most if len(layers) > 1 else None)
    if glance is None:
        return {"tells": found, "glance": None}
    if not layers:
        raise bad_request("layer", query.layer, study.layers)
    shown = study.variant(query.variant) if query.variant is not None else None
    chosen = [one for one in found if one[0] == shown]
    return {"tells": found, "glance": glance, "chosen": chosen, "layer": query.layer, "asked": query.variant}


@router.get("/s/{study}/protocols", name="protocols")
def protocols(request: Request, study: PooledStudy) -> Response:
    """The specification curves: who scores higher under every protocol."""
    found = specifications.curves_of(study)
    return page(request, "protocols", {"curves": found, "axes": specifications.CHOICES}, study)


@router.get("/s/{study}/tensors", name="tensors")
def tensors(request: Request, study: PooledStudy) -> Response:
    """Every weight tensor with the hash of what was run."""
    rows = queries.tensors(study.reader, study.numbers, kinds=False)
    return page(request, "tensors", {"rows": rows}, study)
