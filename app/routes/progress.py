"""/s/STUDY/progress: the strip that says how far a study has come, asked for again and again while it runs."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.render import TEMPLATES, is_partial
from app.state import base_of
from app.studies import Studies, StudyPendingError

router = APIRouter()


@router.get("/s/{study}/progress", name="progress")
def progress(request: Request, study: str, seen: int = 0, shown: int = 0) -> Response:
    """The strip. `seen` is how many SAEs the page began with, `shown` how many it shows by now; tells it of more."""
    seen = max(seen, shown)
    studies: Studies = request.app.state.studies
    entry = studies.entry(study)
    ready = 0
    try:
        with studies.reading(entry) as opened:
            ready = len(opened.all_saes)
    except StudyPendingError:
        pass
    context = {"entry": entry, "progress": entry.progress, "seen": seen, "ready": ready, "base": base_of(request)}
    name = "partials/progress.html" if is_partial(request) else "pages/progress.html"
    response = TEMPLATES.TemplateResponse(request, name, context)
    if ready > seen == 0:
        response.headers["HX-Refresh"] = "true"
    elif ready > seen:
        response.headers["HX-Trigger"] = "study-grew"
    return response
