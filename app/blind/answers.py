"""Writing one row of the log: what may be written when. The caller holds the transaction."""

import math
from dataclasses import dataclass, replace

from app.blind import tables
from app.blind.records import Ack, Event, Undoable, stale
from app.blind.state import Live, TrialState
from app.errors import PageError, bad_request

LONGEST_REASON = 500
"""Characters of a skip's reason, at most."""


@dataclass(frozen=True)
class Answer:
    """What a rater did at a trial; `seconds` run from first paint, `hidden_seconds` of them with the tab hidden."""

    event: Event
    answer: int | None = None
    reason: str | None = None
    seconds: float | None = None
    hidden_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.event == "label" and (type(self.answer) is not int or not 1 <= self.answer <= 6):
            raise bad_request("answer", self.answer, "a whole number from 1 to 6")
        if self.reason is not None and len(self.reason) > LONGEST_REASON:
            raise bad_request("reason", self.reason[:40] + "…", f"up to {LONGEST_REASON} characters")
        for name in ("seconds", "hidden_seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise bad_request(name, value, "a number of seconds from 0")


def write_answer(
    connection: tables.Connection, live: Live, trial: str, revision: int, answer: Answer
) -> tuple[Ack, Live]:
    """Answer the current trial; a revision that is there already changes nothing and is acknowledged as it is.

    Returns what the session is afterwards, too. Raises StaleError when it has moved on, a 409 when it is over, a 404
    for a trial of another session.
    """
    asked = live.state.of(trial)
    if 1 <= revision <= asked.revisions:
        return _again(connection, asked, revision, undo=False), live
    if live.over:
        raise over()
    if live.state.current is not asked or revision != asked.revisions + 1:
        raise stale()
    after = _insert(connection, live, asked, revision, answer)
    if not live.frozen and asked.kind != "practice" and live.session.practice is None:
        tables.freeze(connection, live.session.experiment)
        after = replace(after, frozen=True)
    if after.state.current is None:
        at = tables.finish(connection, live.session.session, left_early=False)
        after = replace(after, session=replace(live.session, finished_at=at))
    truth = asked.truth if asked.kind == "practice" else None
    return Ack(trial, revision, answer.event, answer.answer, written=True, truth=truth), after


def write_undo(connection: tables.Connection, live: Live, wanted: Undoable | None) -> tuple[Ack, Live]:
    """Take back the latest answer, or `wanted`, which must be the latest one or be taken back already.

    Raises StaleError when the session has moved on, a 409 when it is over or there is nothing to take back.
    """
    if wanted is not None:
        asked = live.state.of(wanted.trial)
        if 1 <= wanted.revision <= asked.revisions:
            return _again(connection, asked, wanted.revision, undo=True), live
    if live.over:
        raise over()
    latest = live.state.undoable
    if wanted is not None and wanted != latest:
        raise stale()
    if latest is None:
        raise PageError(409, "Nothing to undo", "There is no answer that can be taken back.", "Go on with this trial.")
    after = _insert(connection, live, live.state.of(latest.trial), latest.revision, Answer("undo"))
    return Ack(latest.trial, latest.revision, "undo", None, written=True, truth=None), after


def over() -> PageError:
    """The session takes no more answers."""
    return PageError(409, "This session is over", "It takes no more answers.", "What was saved before is kept.")


def _insert(connection: tables.Connection, live: Live, asked: TrialState, revision: int, answer: Answer) -> Live:
    keys = {"trial": asked.trial, "revision": revision, "session": live.session.session}
    tables.insert_label(connection, keys | answer.__dict__)
    return replace(live, state=live.state.after(asked, revision, answer.event))


def _again(connection: tables.Connection, asked: TrialState, revision: int, undo: bool) -> Ack:
    stored = tables.label(connection, asked.trial, revision)
    if (stored["event"] == "undo") != undo:
        raise stale()
    truth = asked.truth if asked.kind == "practice" else None
    return Ack(asked.trial, revision, stored["event"], stored["answer"], written=False, truth=truth)
