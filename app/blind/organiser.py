"""/s/STUDY/blind and /blind/o/TOKEN: an organiser sets an experiment up, invites raters, reads results."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict

from app.blind.access import check_key, make_experiment, store_of
from app.blind.design import (
    MOST_GOLD,
    QUESTIONS,
    QUICK_TRIALS,
    Design,
    DesignError,
    Experiment,
    Question,
    Values,
    gold_note,
    read_design,
    standard,
)
from app.blind.export import label_rows, write_csv, write_parquet
from app.blind.method import method_paragraph
from app.blind.outcomes import Answers, Overall, Results
from app.blind.results import results
from app.display.charts import Figure, figure, title
from app.errors import PageError
from app.pages.address import OpenStudy
from app.pages.render import page
from app.security import base_of, origin
from app.study.files import StudyPendingError
from app.study.study import Studies, Study
from core.stats import NEAREST_ACCURACY, labels_needed

router = APIRouter()


class _Setup(BaseModel):
    """The form, as texts: `read_design` checks them, and says what is wrong with them."""

    model_config = ConfigDict(extra="ignore")

    title: str = ""
    layers: list[str] = []
    variants: list[str] = []
    form: str = ""
    trials: str = str(QUICK_TRIALS)
    tier: str = "1"
    feedback: str = "end"
    practice: str = "6"
    repeats: str = "0.07"
    gold: str = "0.08"
    contexts: str = "8"
    margin: str = "0.05"
    min_answered: str = "0.5"
    min_gold: str = "0.6"
    min_seconds: str = "1.5"
    organiser_key: str = ""


@router.get("/s/{study}/blind", name="blind_setup")
def setup(request: Request, study: OpenStudy) -> Response:
    """The form that sets an experiment up, filled in so that it works as it stands."""
    begin = standard(study)
    values = _Setup(**begin | {"layers": [str(layer) for layer in begin["layers"]]})
    return _form(request, study, values)


@router.post("/s/{study}/blind", name="blind_new")
def new(request: Request, study: OpenStudy, given: Annotated[_Setup, Form()]) -> Response:
    """Make the experiment, or show the form again with what is wrong."""
    try:
        check_key(request, given.organiser_key)
        values = given.model_dump(exclude={"organiser_key"})
        design = read_design(values | {"min_gold": given.min_gold or None, "study": study.full_name})
        token = make_experiment(request, study, design)[1]
    except (DesignError, PageError) as error:
        return _form(request, study, given, str(error))
    return RedirectResponse(f"{base_of(request)}/blind/o/{token}", status_code=303)


@router.get("/blind/needed", name="blind_needed")
def needed(
    request: Request,
    accuracy: Annotated[float, Query(ge=0.5 + NEAREST_ACCURACY, le=1)] = 0.6,
    trials: Annotated[int, Query(ge=10, le=2000)] = QUICK_TRIALS,
    gold: str = "",
    min_gold: str = "",
) -> Response:
    """How many labels, and so how many raters, an effect takes; and whether the rule about gold trials can apply."""
    return page(request, "blind_needed", _needed(accuracy, trials) | {"gold_note": _gold_note(trials, gold, min_gold)})


@router.get("/blind/o/{token}", name="blind_organiser")
def organiser(request: Request, token: str) -> Response:
    """The experiment for its organiser: links, raters, results; live until it is closed."""
    experiment = store_of(request).experiment_by_organiser(token)
    found, base = _results(request, experiment), base_of(request)
    context = {
        "experiment": experiment,
        "token": token,
        "results": found,
        "labels": _labels(request, experiment.design.study),
        "states": Counter(rater.state for rater in found.raters),
        "invitation": f"{origin(request)}{base}/blind/join/{experiment.invite}",
        "private": f"{origin(request)}{base}/blind/o/{token}",
        "method": method_paragraph(experiment, found),
        "figures": figures(found),
    }
    return page(request, "blind_organiser", context)


@router.post("/blind/o/{token}/close", name="blind_close")
def close(request: Request, token: str) -> Response:
    """End the experiment: its results are final then."""
    store = store_of(request)
    store.close_experiment(store.experiment_by_organiser(token).experiment)
    return RedirectResponse(f"{base_of(request)}/blind/o/{token}", status_code=303)


@router.get("/blind/o/{token}/labels.csv", name="blind_csv")
def labels_csv(request: Request, token: str) -> Response:
    """The log of answers, a row an event."""
    return _file(request, token, "csv", "text/csv; charset=utf-8")


@router.get("/blind/o/{token}/labels.parquet", name="blind_parquet")
def labels_parquet(request: Request, token: str) -> Response:
    """The same with types."""
    return _file(request, token, "parquet", "application/vnd.apache.parquet")


@router.get("/blind/o/{token}/method.txt", name="blind_method")
def method(request: Request, token: str) -> Response:
    """A paragraph for a paper."""
    experiment = store_of(request).experiment_by_organiser(token)
    return PlainTextResponse(method_paragraph(experiment, _results(request, experiment)))


def _form(request: Request, study: Study, values: _Setup, error: str = "") -> Response:
    context: Values = {
        "values": values,
        "error": error,
        "random": [variant for variant in study.variants if not variant.is_trained],
        "needs_key": bool(request.app.state.organiser_key),
        "fields": {name: field.description for name, field in Design.model_fields.items()},
    }
    # The field may hold anything: what is no number of trials is named in `error`.
    trials = (int(values.trials[:5]) if values.trials.isdecimal() else 0) or QUICK_TRIALS
    context |= _needed(0.6, trials) | {"gold_note": _gold_note(trials, values.gold, values.min_gold)}
    return page(request, "blind_setup", context, study, status=400 if error else 200)


def _needed(accuracy: float, trials: int) -> Values:
    labels = labels_needed(accuracy)
    return {"accuracy": accuracy, "labels": labels, "trials": trials, "raters": -(-labels // trials)}


def _gold_note(trials: int, gold: str, min_gold: str) -> str:
    """`design.gold_note` of what is in the form while it is filled in; nothing where that is no design yet."""
    try:
        share = float(gold)
    except ValueError:
        return ""
    return gold_note(trials, share) if min_gold and 0 <= share <= MOST_GOLD else ""


def _results(request: Request, experiment: Experiment) -> Results:
    store = store_of(request)
    return results(experiment, store.standing(experiment.experiment), store.items(experiment.experiment))


def _labels(request: Request, study: str) -> dict[str, str]:
    """What the study calls its statistics; nothing when it is not there any more."""
    studies: Studies = request.app.state.studies
    try:
        name, asked = studies.split(study)
        with studies.open(name, **asked) as opened:
            return {metric.metric: metric.label for metric in opened.statistics}
    except (PageError, StudyPendingError):
        return {}


def _file(request: Request, token: str, kind: str, media_type: str) -> Response:
    store = store_of(request)
    experiment = store.experiment_by_organiser(token)
    rows = label_rows(experiment, store.all_events(experiment.experiment), store.items(experiment.experiment))
    headers = {"Content-Disposition": f'attachment; filename="labels-{experiment.experiment}.{kind}"'}
    if kind == "csv":
        return Response(write_csv(rows), media_type=media_type, headers=headers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.parquet"
        write_parquet(rows, path)
        return Response(path.read_bytes(), media_type=media_type, headers=headers)


HALF, RATERS = "var(--line-strong)", "var(--ink)"
POSITIVE, NEGATIVE = "v0", "v1"
"""Colours of trained (or right) and of random (or left)."""
UNIT = [-0.02, 1.02]


def figures(results: Results) -> list[tuple[str, Figure]]:
    """Every plot that there is something to draw for, with its title; parts and statistics are lines of tables."""
    overall = results.overall
    if not overall.share.n:
        return []
    curve = [("ROC of the six answers", roc(overall))] if overall.roc else []
    return [*curve, ("Answers by truth", answers(overall.answers, QUESTIONS[results.form]))]


def roc(overall: Overall) -> Figure:
    """Hits against false alarms; the diagonal is guessing."""
    positive, negative = (counted.truth for counted in overall.answers)
    curve = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point.false_alarms for point in overall.roc],
        "y": [point.hits for point in overall.roc],
        "line": {"color": RATERS, "width": 2},
        "marker": {"size": 6},
        "hovertemplate": "false alarms %{x:.1%}, hits %{y:.1%}<extra></extra>",
    }
    diagonal = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": {"color": HALF, "width": 1, "dash": "dash"}}
    return figure(
        [curve],
        {"range": UNIT, "tickformat": ".0%", "title": title(f"{negative} called {positive}"), "nticks": 5},
        {"range": UNIT, "tickformat": ".0%", "title": title(f"{positive} called {positive}"), "nticks": 5},
        height=300,
        shapes=[diagonal],
    )


def answers(counts: Sequence[Answers], question: Question) -> Figure:
    """How often each of the six answers was given to either truth."""
    names = list(question.answers)
    bars = [
        {
            "type": "bar",
            "name": counted.truth,
            "x": names,
            "y": list(counted.counts),
            "marker": {"color": f"var(--{colour})", "line": {"width": 0}},
            "hovertemplate": "%{x}: %{y:,} × %{fullData.name}<extra></extra>",
        }
        for counted, colour in zip(counts, (POSITIVE, NEGATIVE), strict=True)
    ]
    return figure(
        bars,
        {"type": "category"},
        {"rangemode": "tozero", "title": title("labels"), "nticks": 5},
        height=230,
        barmode="group",
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.15},
    )
