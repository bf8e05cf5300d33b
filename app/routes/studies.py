"""/: the studies that there are."""

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.errors import PageError
from app.records import Variant
from app.render import page
from app.studies import Entry, Studies

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
