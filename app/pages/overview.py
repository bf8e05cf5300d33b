"""/s/STUDY: what the study is, every metric by variant and layer, and where it all came from."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.display import comparisons, discrimination, specifications, tables
from app.errors import bad_request
from app.pages.address import OverviewQuery, linker, study_path
from app.pages.render import page
from app.security import base_of
from app.study import queries
from app.study.study import Studies, Study

router = APIRouter()


@router.get("/s/{study}", name="overview")
def overview(request: Request, study: str, query: Annotated[OverviewQuery, Query()]) -> Response:
    """The overview of a study."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        summaries = queries.summaries(opened.reader, opened.numbers, [metric.metric for metric in opened.statistics])
        beside = comparisons.models_beside(opened)
        found = tables.statistic_tables(opened, summaries)
        context = {
            "scores": [t for t in found if t.metric.is_score],
            "statistics": [t for t in found if not t.metric.is_score],
            "tables": tables.metric_tables(opened),
            "link": linker(study_path(base_of(request), opened.name), query.model_dump()),
            "across": comparisons.compared(beside) if len(beside) > 1 else [],
            "summaries": summaries,
            "score_counts": tables.score_counts(opened),
            "all_scores": queries.scores(opened.reader, opened.numbers),
            "by_number": {sae.sae: sae for sae in opened.saes},
            "models": queries.models(opened.reader),
            "provenance": queries.provenance(opened.reader),
            "timings": queries.timings(opened.reader, opened.setting.model if opened.setting else None, opened.numbers),
            "tensors": queries.tensors(opened.reader, opened.numbers),
            "curves": specifications.curves_of(opened, opened.numbers),
            "axes": specifications.CHOICES,
        }
        return page(request, "overview", context | _tells(opened, query), opened)


def _tells(study: Study, query: OverviewQuery) -> dict[str, Any]:
    """Which statistic can tell: each random variant in full or, of many, all at a glance and the one that is asked for.

    Raises a PageError for a layer or variant that is not there.
    """
    found = discrimination.tellings(study, queries.tells(study.reader, study.numbers))
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
def protocols(request: Request, study: str) -> Response:
    """The specification curves: who scores higher under every protocol."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        found = specifications.curves_of(opened, opened.numbers)
        return page(request, "protocols", {"curves": found, "axes": specifications.CHOICES}, opened)


@router.get("/s/{study}/tensors", name="tensors")
def tensors(request: Request, study: str) -> Response:
    """Every weight tensor with the hash of what was run."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        rows = queries.tensors(opened.reader, opened.numbers, kinds=False)
        return page(request, "tensors", {"rows": rows}, opened)
