"""/blind/join and /blind/rate: what a rater sees, from the invitation over the trials to their own result."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.blind.access import cookie_session, rater, set_cookie, store_of
from app.blind.design import BREAK_AFTER, PRACTICE, QUESTIONS, REASONS, RUBRIC, TRUTHS, Experiment, right
from app.blind.results import own_result
from app.blind.sessions import Current, Session, StaleError, Undoable
from app.blind.store import LabelStore
from app.pages.address import Seconds
from app.pages.render import page
from app.security import base_of

router = APIRouter(prefix="/blind")

CELL_BYTES = 128
"""What a token takes on the page, with room to spare."""
REST_BYTES = 24 * 1024
"""What everything else takes, with room to spare."""


class _Given(BaseModel):
    model_config = ConfigDict(extra="ignore")

    trial: Annotated[str, Field(max_length=100)]
    revision: int


class _Answered(_Given):
    seconds: Seconds | None = None
    hidden_seconds: Seconds | None = None


class _Label(_Answered):
    answer: int


class _Skip(_Answered):
    reason: Annotated[str, Field(max_length=200)]


@router.get("/join/{invite}", name="join")
def join(request: Request, invite: str) -> Response:
    """The invitation: what will be asked, what is kept, and a way in."""
    store = store_of(request)
    experiment = store.experiment_by_invite(invite)
    outlook = store.outlook(experiment.experiment, _client(request))
    elsewhere = store.experiment(outlook.elsewhere.experiment) if outlook.elsewhere else None
    context = {"experiment": experiment, "outlook": outlook, "elsewhere": elsewhere, "practice": PRACTICE}
    return _page(request, "join", context | _words(experiment))


@router.post("/join/{invite}", name="joined")
def joined(
    request: Request,
    invite: str,
    pseudonym: Annotated[str, Form(max_length=200)] = "",
    again: Annotated[str, Form()] = "",
) -> Response:
    """Begin a session, or go on with the one that this browser has; `again` begins another after that."""
    store = store_of(request)
    experiment, client = store.experiment_by_invite(invite), _client(request)
    outlook = store.outlook(experiment.experiment, client)
    session = outlook.own
    if session is None or outlook.elsewhere or (again and session.finished_at):
        session = store.join(experiment.experiment, pseudonym.strip() or None, client=client)
    response = RedirectResponse(f"{base_of(request)}/blind/rate", status_code=303)
    set_cookie(request, response, session)
    return response


@router.get("/rate", name="rate")
def rate(request: Request) -> Response:
    """The trial that is to be answered now, or the rater's result when there is none."""
    return _next(request, rater(request))


@router.post("/label", name="label")
def label(request: Request, given: Annotated[_Label, Form()]) -> Response:
    """Answer a trial; practice gets the truth, everything else only the next trial."""
    store, session = store_of(request), rater(request)
    try:
        ack = store.label(
            session.session, given.trial, given.revision, given.answer, given.seconds, given.hidden_seconds
        )
    except StaleError:
        return _next(request, session, stale=True)
    if ack.truth is not None and ack.answer is not None:
        return _trial(request, session, given.trial, feedback=(ack.truth, ack.answer))
    return _next(request, session, paused=True)


@router.post("/skip", name="skip")
def skip(request: Request, given: Annotated[_Skip, Form()]) -> Response:
    """Skip a trial, with a reason."""
    store, session = store_of(request), rater(request)
    try:
        store.skip(session.session, given.trial, given.revision, given.reason, given.seconds, given.hidden_seconds)
    except StaleError:
        return _next(request, session, stale=True)
    return _next(request, session, paused=True)


@router.post("/undo", name="undo")
def undo(request: Request, given: Annotated[_Given, Form()]) -> Response:
    """Take back the last answer and show its trial again."""
    session = rater(request)
    try:
        store_of(request).undo(session.session, Undoable(given.trial, given.revision))
    except StaleError:
        return _next(request, session, stale=True)
    return _next(request, session)


@router.post("/leave", name="leave")
def leave(request: Request) -> Response:
    """End the session early; what was labelled counts."""
    session = rater(request)
    store_of(request).leave(session.session)
    return RedirectResponse(f"{base_of(request)}/blind/rate", status_code=303)


def _client(request: Request) -> str | None:
    """What this browser's sessions have in common; None for one that has none yet."""
    session = cookie_session(request)
    return session.client if session else None


def _next(request: Request, session: Session, paused: bool = False, stale: bool = False) -> Response:
    """The current trial; a break before it when one is due; or the end."""
    store = store_of(request)
    current = store.current(session.session)
    if current.trial is None:
        return _end(request, store, session)
    real = current.done - current.practice_total
    if paused and real > 0 and real % BREAK_AFTER == 0:
        return _page(request, "break", {"current": current})
    return _trial(request, session, current.trial, current, stale=stale)


def _trial(
    request: Request,
    session: Session,
    trial: str,
    current: Current | None = None,
    feedback: tuple[Any, int] | None = None,
    stale: bool = False,
) -> Response:
    """One trial; with `feedback` (the truth and the answer) a practice trial that was answered."""
    store = store_of(request)
    experiment = store.experiment(session.experiment)
    shown = store.shown(session.session, trial)
    form = experiment.design.form
    context: dict[str, Any] = {
        "current": current or store.current(session.session),
        "shown": shown,
        "sides": [side for side in (shown.left, shown.right) if side is not None],
        "stale": stale,
        "counts": session.practice is None,
        "reasons": REASONS,
        "feedback": None,
    }
    if feedback is not None:
        truth, answer = feedback
        context["feedback"] = {"right": right(form, truth, answer), "truth": TRUTHS[truth]}
    response = _page(request, "trial", context | _words(experiment))
    return _padded(response, sum(len(texts) for side in context["sides"] for texts in side.contexts))


def _end(request: Request, store: LabelStore, session: Session) -> Response:
    experiment = store.experiment(session.experiment)
    context: dict[str, Any] = {"experiment": experiment, "session": store.session(session.session), "result": None}
    if experiment.design.feedback == "end":
        context["result"] = own_result(store, session)
        context["place"] = request.app.state.studies.split(experiment.design.study)
    return _page(request, "end", context | _words(experiment))


def _words(experiment: Experiment) -> dict[str, Any]:
    return {"question": QUESTIONS[experiment.design.form], "rubric": RUBRIC, "form": experiment.design.form}


def _page(request: Request, name: str, context: dict[str, Any]) -> Response:
    return page(request, f"blind_{name}", context)


def _padded(response: Response, cells: int) -> Response:
    """Fill the page of a trial up with blanks, so that its length says nothing about the texts in it."""
    body = bytes(response.body)
    response.body = body + b" " * (-len(body) % (REST_BYTES + cells * CELL_BYTES))
    response.headers["Content-Length"] = str(len(response.body))
    return response
