"""/s/STUDY/blind and /blind/o/TOKEN: an organiser sets a blind experiment up, invites raters and reads the results."""

import hmac
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict

from app.blind import plots
from app.blind.access import store_of
from app.blind.design import MOST_GOLD, Design, DesignError, gold_note, read_design
from app.blind.evidence import identity, prepare
from app.blind.export import label_rows, write_csv, write_parquet
from app.blind.method import method_paragraph
from app.blind.records import Experiment
from app.blind.results import Results, results
from app.errors import PageError
from app.hosts import origin
from app.render import page
from app.state import base_of
from app.stats import NEAREST_ACCURACY, labels_needed
from app.studies import Studies, Study, StudyPendingError

router = APIRouter()

QUICK_TRIALS = 40
"""What the form begins with: one person is through in some four minutes."""

Values = dict[str, Any]


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
def setup(request: Request, study: str) -> Response:
    """The form that sets an experiment up, filled in so that it works as it stands."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        begin = standard(opened)
        values = _Setup(**begin | {"layers": [str(layer) for layer in begin["layers"]]})
        return _form(request, opened, values)


@router.post("/s/{study}/blind", name="blind_new")
def new(request: Request, study: str, given: Annotated[_Setup, Form()]) -> Response:
    """Make the experiment, or show the form again with what is wrong."""
    studies: Studies = request.app.state.studies
    with studies.open(study) as opened:
        try:
            check_key(request, given.organiser_key)
            design = read_design(_design_values(given) | {"study": opened.name})
            token = make_experiment(request, opened, design)[1]
        except (DesignError, PageError) as error:
            return _form(request, opened, given, str(error))
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
        "figures": plots.figures(found),
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


def standard(study: Study) -> Values:
    """What an experiment is when nothing else is said: all layers, the first random variant, one latent at a time."""
    random = [variant.variant for variant in study.variants if not variant.is_trained]
    return {"title": "Trained or random?", "form": "single", "layers": study.layers, "variants": random[:1]}


def check_key(request: Request, given: str) -> None:
    """Refuse to set an experiment up without the organiser's key, where the server has one; raises a 403."""
    wanted: str = request.app.state.organiser_key
    if wanted and not hmac.compare_digest(given.encode(), wanted.encode()):
        what = "is missing" if not given else "is not the right one"
        raise PageError(403, "Organisers only", f"The organiser's key {what}.", "Ask whoever runs this server for it.")


def make_experiment(request: Request, study: Study, design: Design) -> tuple[Experiment, str]:
    """Draw the pool, freeze its evidence and keep it; gives the experiment and the organiser's token."""
    return store_of(request).create_experiment(design, identity(study), prepare(study, design))


def _design_values(given: _Setup) -> Values:
    values: Values = given.model_dump(exclude={"organiser_key"})
    return values | {"min_gold": given.min_gold or None}


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
        with studies.open(study) as opened:
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
