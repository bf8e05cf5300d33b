"""What the label store hands out: experiments, sessions, where a session stands, labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from app.blind.design import Design, Form, Kind, Practice, Truth
from app.blind.evidence import Evidence
from app.errors import PageError

Event: TypeAlias = Literal["label", "skip", "undo"]
Rater: TypeAlias = Literal["person", "program"]


class StaleError(PageError):
    """409: an answer to a trial that is not the session's current one, as from a second tab; nothing was written."""


def stale() -> StaleError:
    """The session has moved on."""
    return StaleError(
        409,
        "This trial was answered already",
        "Your session has moved on, perhaps in another tab, so this answer was not saved.",
        "Go on with the trial that is open now.",
    )


@dataclass(frozen=True)
class Experiment:
    """A row of `experiments`; `study` is `app.blind.evidence.identity` of the study when it was made."""

    experiment: str
    title: str
    design: Design
    study: Mapping[str, Any]
    invite: str
    created_at: datetime
    frozen_at: datetime | None
    closed_at: datetime | None


@dataclass(frozen=True)
class Session:
    """A row of `sessions`; `token` is a program's bearer token, given once, by `join`.

    `client` is the same for all sessions of one browser or program; `practice` is None for a session that counts.
    """

    session: str
    experiment: str
    pseudonym: str
    kind: Rater
    seed: int
    started_at: datetime
    finished_at: datetime | None
    left_early: bool
    client: str
    practice: Practice | None
    token: str | None = None


@dataclass(frozen=True)
class Outlook:
    """What a session of a browser or program would be, were it to begin one now.

    `own` is its latest session of this experiment, `elsewhere` one of another that is open and must be ended before.
    """

    own: Session | None = None
    elsewhere: Session | None = None
    practice: Practice | None = None


@dataclass(frozen=True)
class Item:
    """A latent of an experiment, without what is seen of it."""

    item: int
    pair: int
    sae: int
    variant: str
    layer: int
    latent: int
    density: float
    statistics: Mapping[str, float | None]


@dataclass(frozen=True)
class Undoable:
    """The last answer that can be taken back, and the revision that does it."""

    trial: str
    revision: int


@dataclass(frozen=True)
class Current:
    """Where a session stands: the trial to answer and the revision to give it, or None when it is over.

    `done` and `total` count all trials, of which the first `practice_total` are practice.
    """

    trial: str | None
    revision: int
    practice: bool
    done: int
    total: int
    practice_total: int
    undoable: Undoable | None
    finished: bool


@dataclass(frozen=True)
class Shown:
    """What a rater sees at a trial; `right` is None in the form 'single'."""

    trial: str
    practice: bool
    left: Evidence
    right: Evidence | None


@dataclass(frozen=True)
class Ack:
    """A row of `labels` that is on disk; `written` is false if it was there before, `truth` is None but in practice."""

    trial: str
    revision: int
    event: Event
    answer: int | None
    written: bool
    truth: Truth | None


@dataclass(frozen=True)
class Standing:
    """A trial with its standing answer: `event` is None when there is none yet, or none any more.

    `left` and `right` are items; `variant` is the random variant of the pair; `density` is the share of tokens of the
    one latent, or the geometric mean of the two. `revisions` counts rows of the log: 1 is an answer never taken back.
    """

    session: str
    pseudonym: str
    rater: Rater
    practice: Practice | None
    started_at: datetime
    finished_at: datetime | None
    left_early: bool
    position: int
    kind: Kind
    form: Form
    truth: Truth
    repeats: int | None
    pair: int
    left: int
    right: int | None
    variant: str
    layer: int
    density: float
    event: Event | None
    answer: int | None
    reason: str | None
    seconds: float | None
    hidden_seconds: float | None
    revisions: int


@dataclass(frozen=True)
class Logged:
    """A row of the append-only log, with whose it is and where in the session; `written_at` is UTC."""

    session: str
    pseudonym: str
    rater: Rater
    practice_session: bool
    position: int
    kind: Kind
    truth: Truth
    left: int
    right: int | None
    trial: str
    revision: int
    event: Event
    answer: int | None
    reason: str | None
    seconds: float | None
    hidden_seconds: float | None
    written_at: datetime


@dataclass(frozen=True)
class Progress:
    """How far a session is."""

    session: Session
    done: int
    total: int
