"""/s/STUDY: what the study is, every metric by variant and layer, and where it all came from."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app import across, aggregates, queries, tables
from app.render import page
from app.studies import Studies

router = APIRouter()


@router.get("/s/{study}", name="overview")
def overview(request: Request, study: str) -> Response:
    """The overview of a study."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        summaries = aggregates.summaries(opened.reader, opened.numbers, [metric.metric for metric in opened.statistics])
        beside = across.models_beside(opened)
        found = tables.statistic_tables(opened, summaries)
        context = {
            "scores": [t for t in found if tables.is_score(t.metric)],
            "statistics": [t for t in found if not tables.is_score(t.metric)],
            "tables": tables.metric_tables(opened),
            "tells": tables.tellings(opened, queries.tells(opened.reader, opened.numbers)),
            "across": across.compared(beside) if len(beside) > 1 else [],
            "summaries": summaries,
            "score_counts": tables.score_counts(opened),
            "models": queries.models(opened.reader),
            "provenance": queries.provenance(opened.reader),
            "timings": queries.timings(opened.reader, opened.setting.model if opened.setting else None, opened.numbers),
            "tensors": queries.tensors(opened.reader, opened.numbers),
        }
        return page(request, "overview", context, opened)


@router.get("/s/{study}/tensors", name="tensors")
def tensors(request: Request, study: str) -> Response:
    """Every weight tensor with the hash of what was run."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        rows = queries.tensors(opened.reader, opened.numbers, kinds=False)
        return page(request, "tensors", {"rows": rows}, opened)
