"""/, the list of studies; the strip that shows a study's progress; /healthz and /readyz for Docker and proxies."""

import os
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from app.errors import PageError
from app.pages.address import FoundStudy
from app.pages.render import TEMPLATES, is_partial, page
from app.security import base_of
from app.study.files import Entry, StudyPendingError
from app.study.records import Variant
from app.study.study import Studies

router = APIRouter()


@dataclass(frozen=True)
class Card:
    """A study in the list; `problem` says why it cannot be opened."""

    entry: Entry
    title: str
    complete: bool = False
    saes: int = 0
    planned: int = 0
    variants: tuple[Variant, ...] = ()
    layers: tuple[int, ...] = ()
    problem: str = ""


@router.get("/", name="studies")
def studies(request: Request) -> Response:
    """The list of studies, also of those that are being built or cannot be read."""
    found: Studies = request.app.state.studies
    cards = [_card(found, entry) for entry in found.entries()]
    return page(request, "studies", {"cards": cards})


def _card(studies: Studies, entry: Entry) -> Card:
    if entry.path is None:
        report = entry.progress.report if entry.progress else None
        return Card(entry, (report.title if report else "") or entry.name, planned=report.planned_saes if report else 0)
    try:
        with studies.reading(entry) as study:
            return Card(
                entry,
                title=study.row["title"] or entry.name,
                complete=study.row["complete"],
                saes=len(study.all_saes),
                planned=study.row["planned_saes"],
                variants=tuple(study.variants),
                layers=tuple(sorted({sae.layer for sae in study.all_saes})),
            )
    except PageError as error:
        return Card(entry, entry.name, problem=f"{error.message} {error.advice}")


@router.get("/s/{study}/progress", name="progress")
def progress(request: Request, entry: FoundStudy, seen: int = 0, shown: int = 0) -> Response:
    """The strip. `seen` is how many SAEs the page began with, `shown` how many it shows by now; tells it of more."""
    seen = max(seen, shown)
    studies: Studies = request.app.state.studies
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


@router.get("/healthz", name="health")
def health() -> dict[str, str]:
    """Say that the server is up."""
    return {"status": "ok"}


@router.get("/readyz", name="ready")
def ready(request: Request, response: Response) -> dict[str, object]:
    """Say how many studies the server sees; 503 when it cannot read the places where it looks for them."""
    studies = request.app.state.studies
    unreadable = [path.name for path in studies.paths if not _readable(path)]
    if unreadable:
        response.status_code = 503
        return {"status": "not ready", "unreadable": unreadable}
    return {"status": "ok", "studies": len(studies.entries())}


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)
