"""/api/blind: the same trials as JSON, for programs that label; docs/blind-api.md describes it."""

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.blind.access import check_key, make_experiment, program, program_client, store_of
from app.blind.design import PRACTICE, QUESTIONS, RUBRIC, DesignError, read_design, standard
from app.blind.results import own_result
from app.blind.sessions import Ack, Session, Undoable
from app.errors import PageError, bad_request
from app.pages.address import Seconds
from app.study.study import Studies


async def _whole_characters(request: Request) -> None:
    """Refuse JSON with half a character, as \\ud800 is, which no file and no answer can hold; raises a 400."""
    try:
        json.dumps(json.loads(await request.body()), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        message = f"The request holds half a character, {error.object[error.start]!a}."
        raise PageError(400, "That is no text", message, "Send whole characters.") from error
    except (ValueError, RecursionError):
        return  # what is no JSON is refused where it is needed


router = APIRouter(prefix="/api/blind", dependencies=[Depends(_whole_characters)])


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Join(_Strict):
    invite: str
    pseudonym: str | None = None
    client: Annotated[str, Field(max_length=200)] = ""


class _Answer(_Strict):
    trial: str
    revision: int
    seconds: Seconds | None = None
    answer: int | None = None
    skip: Annotated[str, Field(max_length=200)] | None = None


class _Undo(_Strict):
    trial: str
    revision: int


@router.post("/experiments")
def new(request: Request, design: Annotated[dict[str, Any], Body()]) -> Response:
    """Set an experiment up; the body is a design, with `organiser_key` where the server asks for one.

    Left out, `layers` are all of the study's, and `variants` its first random one.
    """
    check_key(request, str(design.pop("organiser_key", "")))
    studies: Studies = request.app.state.studies
    try:
        name, asked = studies.split(str(design.get("study", "")))
        with studies.open(name, **asked) as opened:
            read = read_design(standard(opened) | design | {"study": opened.full_name})
            experiment, token = make_experiment(request, opened, read)
    except DesignError as error:
        raise PageError(400, "That experiment cannot be made", str(error)) from error
    paths = {"invitation": f"/blind/join/{experiment.invite}", "organiser": f"/blind/o/{token}"}
    told = {"experiment": experiment.experiment, "invite": experiment.invite, "note": read.note}
    return _json(told | paths, status=201)


@router.post("/sessions")
def join(request: Request, given: _Join) -> Response:
    """Join as a program; the token is told once, here. One session of a client counts."""
    store = store_of(request)
    experiment = store.experiment_by_invite(given.invite)
    client = program_client(request, experiment.experiment, given.client.strip())
    session = store.join(experiment.experiment, given.pseudonym, kind="program", client=client)
    question = QUESTIONS[experiment.design.form]
    return _json(
        {
            "token": session.token,
            "pseudonym": session.pseudonym,
            "counts": session.practice is None,
            "practice": f"This session is {PRACTICE[session.practice]}" if session.practice else "",
            "title": experiment.title,
            "form": experiment.design.form,
            "question": question.text,
            "answers": dict(enumerate(question.answers, start=1)),
            "rubric": RUBRIC,
            "total": store.current(session.session).total,
        },
        status=201,
    )


@router.get("/trial")
def trial(request: Request) -> Response:
    """The trial to answer now; when the session is over, `finished` and nothing else."""
    store, session = store_of(request), program(request)
    current = store.current(session.session)
    if current.trial is None:
        return _json({"finished": True, "done": current.done, "total": current.total})
    shown = store.shown(session.session, current.trial)
    sides = {"left": shown.left, "right": shown.right} if shown.right else {"latent": shown.left}
    return _json(
        {
            "finished": False,
            "trial": current.trial,
            "revision": current.revision,
            "practice": current.practice,
            "done": current.done,
            "total": current.total,
            "undo": asdict(current.undoable) if current.undoable else None,
            **{name: side.model_dump(exclude_none=True) for name, side in sides.items()},
        }
    )


@router.post("/answers")
def answer(request: Request, given: _Answer) -> Response:
    """Answer or skip the current trial; tells the truth of practice trials, and otherwise only what comes next."""
    store, session = store_of(request), program(request)
    if (given.answer is None) == (given.skip is None):
        raise bad_request("answer", given.answer, "a whole number from 1 to 6, or absent beside a reason to skip")
    if given.answer is not None:
        ack = store.label(session.session, given.trial, given.revision, given.answer, given.seconds, None)
    else:
        ack = store.skip(session.session, given.trial, given.revision, given.skip or "", given.seconds)
    return _saved(request, session, ack)


@router.post("/undo")
def undo(request: Request, given: _Undo) -> Response:
    """Take back the latest answer, named by `undo` of the trial that came after it."""
    session = program(request)
    ack = store_of(request).undo(session.session, Undoable(given.trial, given.revision))
    return _saved(request, session, ack)


@router.get("/result")
def result(request: Request) -> Response:
    """The program's own result, when its session is over and the design lets raters see theirs."""
    store, session = store_of(request), program(request)
    experiment = store.experiment(session.experiment)
    if not store.current(session.session).finished:
        raise PageError(409, "Not over yet", "The result is told when every trial is answered.", "Go on.")
    if experiment.design.feedback != "end":
        raise PageError(403, "Results are the organiser's", "The design of this experiment tells raters no result.")
    return _json(asdict(own_result(store, session)))


def _saved(request: Request, session: Session, ack: Ack) -> Response:
    current = store_of(request).current(session.session)
    told = {"truth": ack.truth} if ack.truth is not None else {}
    return _json({"saved": True, "trial": ack.trial, "revision": ack.revision, "next": current.trial, **told})


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(content, status_code=status)
