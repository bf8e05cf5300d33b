"""A rater's session: where it stands, what may be written when, and what a new one of somebody known would be."""

import json
import math
import secrets
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from app.blind import labelfile
from app.blind.design import Experiment, Kind, Practice, Truth
from app.blind.labelfile import Connection, Row
from app.blind.sampling import Candidate, Pair
from app.errors import PageError, bad_request

Event: TypeAlias = Literal["label", "skip", "undo"]
Rater: TypeAlias = Literal["person", "program"]

LONGEST_REASON = 500
"""Characters of a skip's reason, at most."""


class StaleError(PageError):
    """409: an answer to a trial that is not the session's current one, as from a second tab; nothing was written."""


def _stale() -> StaleError:
    return StaleError(
        409,
        "This trial was answered already",
        "Your session has moved on, perhaps in another tab, so this answer was not saved.",
        "Go on with the trial that is open now.",
    )


@dataclass(frozen=True)
class Session:
    """A row of `sessions`; `token` is a program's bearer token, given once, when it joins.

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
class Ack:
    """A row of `labels` that is on disk; `written` is false if it was there before, `truth` is None but in practice."""

    trial: str
    revision: int
    event: Event
    answer: int | None
    written: bool
    truth: Truth | None


# ---- where a session stands ----


@dataclass(frozen=True)
class TrialState:
    """A trial, how many revisions it has, and the event of the last one."""

    trial: str
    position: int
    kind: Kind
    truth: Truth
    revisions: int
    last: Event | None

    @property
    def answered(self) -> bool:
        """Whether an answer stands: a label or a skip."""
        return self.last in ("label", "skip")


@dataclass(frozen=True)
class SessionState:
    """A session with its trials in order; whether its experiment is frozen, and whether it takes no more answers."""

    session: Session
    frozen: bool
    over: bool
    trials: Sequence[TrialState]

    def of(self, trial: str) -> TrialState:
        """One of the trials; raises a 404 for a trial of another session or of none."""
        for state in self.trials:
            if state.trial == trial:
                return state
        raise no_trial()

    @property
    def open(self) -> TrialState | None:
        """The first trial without a standing answer."""
        return next((state for state in self.trials if not state.answered), None)

    @property
    def undoable(self) -> Undoable | None:
        """The latest answer, unless it was to a practice trial, of which the truth has been shown."""
        latest = next((state for state in reversed(self.trials) if state.answered), None)
        if latest is None or latest.kind == "practice":
            return None
        return Undoable(latest.trial, latest.revisions + 1)

    @property
    def current(self) -> Current:
        """What the rater is to do now."""
        trial = None if self.over else self.open
        return Current(
            trial=trial.trial if trial else None,
            revision=trial.revisions + 1 if trial else 0,
            practice=trial is not None and trial.kind == "practice",
            done=sum(state.answered for state in self.trials),
            total=len(self.trials),
            practice_total=sum(state.kind == "practice" for state in self.trials),
            undoable=None if self.over else self.undoable,
            finished=self.over,
        )


def no_trial() -> PageError:
    """404: a trial of another session, or of none."""
    return PageError(404, "No such trial", "This trial does not belong to your session.", "Go back to your session.")


def session_of(row: Row) -> Session:
    """A row of `sessions` as a record."""
    return Session(**{name: row[name] for name in Session.__dataclass_fields__ if name != "token"})


def find_session(connection: Connection, column: str, value: str) -> Session:
    """A session by `session` or `token_sha256`; raises a 404."""
    return session_of(_found(connection, column, value))


def find_state(connection: Connection, session: str) -> SessionState:
    """Where a session stands; raises a 404."""
    row = _found(connection, "session", session)
    over = row["closed_at"] is not None or row["finished_at"] is not None
    trials = [TrialState(**trial) for trial in labelfile.trials(connection, session)]
    return SessionState(session_of(row), row["frozen_at"] is not None, over, trials)


def _found(connection: Connection, column: str, value: str) -> Row:
    row = labelfile.session(connection, column, value)
    if row is None:
        raise PageError(404, "No such session", "This session is not known here.", "Begin with the invitation again.")
    return row


# ---- answers: the caller holds the transaction ----


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


def write_answer(connection: Connection, session: str, trial: str, revision: int, answer: Answer) -> Ack:
    """Answer the current trial; a revision that is there already changes nothing and is acknowledged as it is.

    Raises StaleError when the session has moved on, a 409 when it is over, a 404 for a trial of another session.
    """
    state = find_state(connection, session)
    asked = state.of(trial)
    if 1 <= revision <= asked.revisions:
        return _again(connection, asked, revision, undo=False)
    if state.over:
        raise _over()
    if state.open is not asked or revision != asked.revisions + 1:
        raise _stale()
    _write(connection, asked.trial, revision, answer)
    if not state.frozen and asked.kind != "practice" and state.session.practice is None:
        labelfile.freeze(connection, state.session.experiment)
    if all(other.answered or other is asked for other in state.trials):
        labelfile.finish(connection, session, left_early=False)
    truth = asked.truth if asked.kind == "practice" else None
    return Ack(trial, revision, answer.event, answer.answer, written=True, truth=truth)


def write_undo(connection: Connection, session: str, wanted: Undoable | None) -> Ack:
    """Take back the latest answer, or `wanted`, which must be the latest one or be taken back already.

    Raises StaleError when the session has moved on, a 409 when it is over or there is nothing to take back.
    """
    state = find_state(connection, session)
    if wanted is not None:
        asked = state.of(wanted.trial)
        if 1 <= wanted.revision <= asked.revisions:
            return _again(connection, asked, wanted.revision, undo=True)
    if state.over:
        raise _over()
    latest = state.undoable
    if wanted is not None and wanted != latest:
        raise _stale()
    if latest is None:
        raise PageError(409, "Nothing to undo", "There is no answer that can be taken back.", "Go on with this trial.")
    _write(connection, latest.trial, latest.revision, Answer("undo"))
    return Ack(latest.trial, latest.revision, "undo", None, written=True, truth=None)


def _over() -> PageError:
    return PageError(409, "This session is over", "It takes no more answers.", "What was saved before is kept.")


def _write(connection: Connection, trial: str, revision: int, answer: Answer) -> None:
    labelfile.insert_label(connection, {"trial": trial, "revision": revision} | answer.__dict__)


def _again(connection: Connection, asked: TrialState, revision: int, undo: bool) -> Ack:
    stored = labelfile.label(connection, asked.trial, revision)
    if (stored["event"] == "undo") != undo:
        raise _stale()
    truth = asked.truth if asked.kind == "practice" else None
    return Ack(asked.trial, revision, stored["event"], stored["answer"], written=False, truth=truth)


# ---- a new session: who has been told the truth remembers it ----

Latent: TypeAlias = tuple[str, int]
"""An SAE, by the hash of its weights, and the index of a latent there: the same in whatever experiment."""


@dataclass(frozen=True)
class Beginning:
    """What a new session would be, the pairs that it is drawn from, and the open ones of its client that end for it."""

    outlook: Outlook
    main: Sequence[Pair]
    practice: Sequence[Pair]
    items: Mapping[tuple[int, int], int]
    """By the key of a latent."""
    open: Sequence[Row]

    def ending(self) -> list[str]:
        """The client's open sessions, which end when this one begins; raises a 409 when one must be gone on with.

        One at a time: what the end of one tells would give answers of the other away. A program that broke down before
        its first answer cannot come back, so its session ends by itself.
        """
        if any(row["answers"] or row["kind"] == "person" for row in self.open):
            raise PageError(
                409,
                "One session at a time",
                "You are in the middle of a session, and what its end tells would give answers away here.",
                "Go on with that one, or end it, and come back.",
            )
        return [row["session"] for row in self.open]


def look(connection: Connection, experiment: Experiment, client: str) -> Beginning:
    """What a session of this browser or program in the experiment would be now.

    It counts if no earlier one here has an answer that counts, and if enough pairs are left of which the client has
    answered neither latent, in whatever experiment; it is drawn from these.
    """
    past = labelfile.sessions_of(connection, client)
    own = [row for row in past if row["experiment"] == experiment.experiment]
    elsewhere = [row for row in past if row["open"] and row not in own]
    rows = labelfile.items(connection, experiment.experiment)
    latents = [Candidate(row["sae"], row["latent"], row["variant"], row["layer"], row["density"], {}) for row in rows]
    pairs = [
        Pair(trained, random, row["role"])
        for trained, random, row in zip(latents[::2], latents[1::2], rows[::2], strict=True)
    ]
    main = [pair for pair in pairs if pair.role == "main"]
    known = _answered(connection, client) if past else set()
    fresh = [
        pair
        for pair in main
        if not any(
            _latent(experiment.study, one.variant, one.layer, one.latent) in known
            for one in (pair.trained, pair.random)
        )
    ]
    again, too_few = any(row["answers"] for row in own), len(fresh) < experiment.design.rater_pairs
    outlook = Outlook(
        own=session_of(own[-1]) if own else None,
        elsewhere=session_of(elsewhere[-1]) if elsewhere else None,
        practice="again" if again else "known" if too_few else None,
    )
    return Beginning(
        outlook,
        main if outlook.practice else fresh,
        [pair for pair in pairs if pair.role == "practice"],
        {latent.key: row["item"] for latent, row in zip(latents, rows, strict=True)},
        [row for row in past if row["open"]],
    )


def _answered(connection: Connection, client: str) -> set[Latent]:
    rows = labelfile.answered_latents(connection, client)
    studies = {text: json.loads(text) for text in {row["study"] for row in rows}}
    return {_latent(studies[row["study"]], row["variant"], row["layer"], row["latent"]) for row in rows}


def _latent(study: Mapping[str, Any], variant: str, layer: int, latent: int) -> Latent:
    place = f"{variant} {layer}"
    return study.get("saes", {}).get(place, place), latent


# ---- pseudonyms ----

LONGEST = 40
"""Characters of a pseudonym, at most."""

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Control, format, surrogate, private and unassigned characters; ends of lines."""
_BLANK = (
    *(range(code, code + 1) for code in (0x34F, 0x115F, 0x1160, 0x180F, 0x2800, 0x3164, 0xFFA0, 0x16FE4, 0x1D159)),
    *(range(0x17B4, 0x17B6), range(0x180B, 0x180E), range(0xFE00, 0xFE10), range(0x13441, 0x13443)),
    range(0xE0100, 0xE01F0),
)
"""Letters, marks and symbols that draw nothing: fillers, joiners, variation selectors, the empty braille pattern."""

_FIRST = (
    *("amber", "brisk", "calm", "clear", "dusky", "eager", "early", "gentle", "golden", "green", "hazel", "keen"),
    *("lively", "lunar", "mellow", "misty", "noble", "olive", "plain", "quiet", "rapid", "rustic", "silver", "sunny"),
)
_SECOND = (
    *("badger", "beech", "brook", "cedar", "comet", "crane", "falcon", "fern", "finch", "harbour", "heron", "lark"),
    *("linden", "maple", "marten", "meadow", "otter", "pebble", "pine", "plover", "river", "sparrow", "tern", "willow"),
)


def _made_up() -> str:
    """Such as 'quiet-heron-417'; 518,400 of them, so the caller looks whether it is free."""
    return f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}-{100 + secrets.randbelow(900)}"


def _plain(text: str) -> str:
    """The pseudonym in its plain form: compatible characters made one (NFKC), blanks one space, none at the ends.

    Raises a 400 when it is empty, too long or has a character that cannot be seen.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    for char in plain:
        if _unseen(char):
            named = f"U+{ord(char):04X} {unicodedata.name(char, '')}".strip()
            raise _refused(f"It has a character that cannot be seen, {named}.")
    plain = " ".join(plain.split())
    if not 0 < len(plain) <= LONGEST:
        raise _refused(f"It has {len(plain)} characters.")
    return plain


def _folded(pseudonym: str) -> str:
    """What two pseudonyms that look alike have in common: neither case, nor kinds of dash and blank, nor the unseen."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", pseudonym).casefold())
    seen = ("-" if unicodedata.category(char) == "Pd" else char for char in plain if not _unseen(char))
    return " ".join("".join(seen).split())


def _unseen(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN or any(ord(char) in codes for codes in _BLANK)


def _refused(why: str) -> PageError:
    advice = f"Choose one of 1 to {LONGEST} characters that can all be seen, or none to get one."
    return PageError(400, "That pseudonym cannot be", why, advice)


def free_pseudonym(wanted: str | None, taken: Collection[str]) -> str:
    """The wanted pseudonym in its plain form, or one made up; raises a 409 when it looks like one that is taken."""
    known = {_folded(pseudonym) for pseudonym in taken}
    if wanted is None:
        return next(made for made in iter(_made_up, None) if made not in known)
    plain = _plain(wanted)
    if _folded(plain) in known:
        raise PageError(
            409,
            "That pseudonym is taken",
            f"Another rater is called “{plain}”, or something that looks like it.",
            "Choose another, or none to get one.",
        )
    return plain
