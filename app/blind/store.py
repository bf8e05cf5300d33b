"""The store of blind experiments: each method is one transaction, on disk when it returns, from whatever thread."""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from app.blind import labelfile
from app.blind.design import Design, Experiment, Form, Kind, Practice, Truth
from app.blind.evidence import Evidence, Prepared
from app.blind.labelfile import Connection, LabelFile, Row
from app.blind.sampling import draw_session
from app.blind.sessions import (
    Ack,
    Answer,
    Current,
    Event,
    Outlook,
    Rater,
    Session,
    Undoable,
    find_session,
    find_state,
    free_pseudonym,
    look,
    no_trial,
    write_answer,
    write_undo,
)
from app.errors import PageError


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
class Shown:
    """What a rater sees at a trial; `right` is None in the form 'single'."""

    trial: str
    practice: bool
    left: Evidence
    right: Evidence | None


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


class LabelStore:
    """The one file of blind experiments; raises UserError when it cannot be opened."""

    def __init__(self, path: Path, checkpoint_bytes: int = 4 * 2**20) -> None:
        self._file = LabelFile(path, checkpoint_bytes)

    @property
    def cookie_secret(self) -> bytes:
        """32 random bytes, made once with the file."""
        return self._file.cookie_secret

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def create_experiment(
        self, design: Design, study: Mapping[str, Any], prepared: Sequence[Prepared]
    ) -> tuple[Experiment, str]:
        """Keep a design with its pairs and their evidence; the text is the organiser's token, told here once.

        `study` is `evidence.identity`, `prepared` is `evidence.prepare`, both of the same open study.
        """
        experiment, token = secrets.token_hex(8), secrets.token_urlsafe(24)
        values: Row = {
            "experiment": experiment,
            "title": design.title,
            "design": design.model_dump_json(),
            "study": json.dumps(study, ensure_ascii=False),
            "organiser_sha256": _sha256(token),
            "invite": secrets.token_urlsafe(16),
            "created_at": labelfile.now(),
        }
        with self._file.transaction() as connection:
            labelfile.insert_experiment(connection, values, _item_rows(experiment, prepared))
            return _find_experiment(connection, "experiment", experiment), token

    def experiment(self, experiment: str) -> Experiment:
        """An experiment by its id; raises a 404."""
        with self._file.reading() as connection:
            return _find_experiment(connection, "experiment", experiment)

    def experiment_by_organiser(self, token: str) -> Experiment:
        """The experiment that an organiser's token opens; raises a 404."""
        with self._file.reading() as connection:
            return _find_experiment(connection, "organiser_sha256", _sha256(token))

    def experiment_by_invite(self, invite: str) -> Experiment:
        """The experiment that an invitation leads to; raises a 404."""
        with self._file.reading() as connection:
            return _find_experiment(connection, "invite", invite)

    def close_experiment(self, experiment: str) -> None:
        """Take no more sessions and answers; what was written stays. Closing twice is closing once."""
        with self._file.transaction() as connection:
            if _find_experiment(connection, "experiment", experiment).closed_at is None:
                labelfile.close(connection, experiment)

    def join(
        self, experiment: str, pseudonym: str | None = None, kind: Rater = "person", client: str | None = None
    ) -> Session:
        """Begin a session with trials of its own; makes up a pseudonym where none is given.

        `client` is that of an earlier session of the same browser, or names a program; None is somebody new. A
        program's session has its bearer token, told here once. Raises a 404 for no such experiment, a 400 for a
        pseudonym that cannot be, a 409 for one that is taken, for an experiment that is closed, and for a client that
        is in the middle of another session.
        """
        client = client or secrets.token_urlsafe(18)
        with self._file.transaction() as connection:
            known = _find_experiment(connection, "experiment", experiment)
            if known.closed_at:
                raise PageError(409, "This experiment is closed", "It takes no more raters.", "")
            name = free_pseudonym(pseudonym, labelfile.pseudonyms(connection, experiment))
            beginning = look(connection, known, client)
            for ended in beginning.ending():
                labelfile.finish(connection, ended, left_early=True)
            session = Session(
                session=secrets.token_urlsafe(18),
                experiment=experiment,
                pseudonym=name,
                kind=kind,
                # Not from the design's seed: who knows that one could work out what others will see.
                seed=secrets.randbits(62),
                started_at=labelfile.now(),
                finished_at=None,
                left_early=False,
                client=client,
                practice=beginning.outlook.practice,
                token=secrets.token_urlsafe(24) if kind == "program" else None,
            )
            trials = [
                {
                    "trial": secrets.token_urlsafe(18),
                    "session": session.session,
                    "position": trial.position,
                    "kind": trial.kind,
                    "left_item": beginning.items[trial.left.key],
                    "right_item": beginning.items[trial.right.key] if trial.right else None,
                    "truth": trial.truth,
                    "repeats": trial.repeats,
                }
                for trial in draw_session(beginning.main, beginning.practice, known.design, session.seed)
            ]
            values = dict(session.__dict__)
            token = values.pop("token")
            values["token_sha256"] = _sha256(token) if token else None
            labelfile.insert_session(connection, values, trials)
        return session

    def outlook(self, experiment: str, client: str | None) -> Outlook:
        """What a session of this client in the experiment would be now; None is somebody new. Raises a 404."""
        if client is None:
            return Outlook()
        with self._file.reading() as connection:
            return look(connection, _find_experiment(connection, "experiment", experiment), client).outlook

    def session(self, session: str) -> Session:
        """A session by its id; raises a 404."""
        with self._file.reading() as connection:
            return find_session(connection, "session", session)

    def session_by_bearer(self, token: str) -> Session:
        """The session of a program by its bearer token; raises a 404."""
        with self._file.reading() as connection:
            return find_session(connection, "token_sha256", _sha256(token))

    def leave(self, session: str) -> None:
        """End a session before its last trial; leaving twice is leaving once, and a finished one stays finished."""
        with self._file.transaction() as connection:
            if find_session(connection, "session", session).finished_at is None:
                labelfile.finish(connection, session, left_early=True)

    def current(self, session: str) -> Current:
        """Where a session stands; raises a 404."""
        with self._file.reading() as connection:
            return find_state(connection, session).current

    def shown(self, session: str, trial: str) -> Shown:
        """What a rater sees at one of their trials, as frozen with the experiment; raises a 404."""
        with self._file.reading() as connection:
            row = labelfile.trial(connection, session, trial)
            if row is None:
                raise no_trial()
            numbers = [item for item in (row["left_item"], row["right_item"]) if item is not None]
            seen = [labelfile.evidence(connection, row["experiment"], item) for item in numbers]
        # Of a gold pair only the random latent has been shuffled; the trained one is shown as it is.
        texts = [(side["gold_evidence"] if row["kind"] == "gold" else None) or side["evidence"] for side in seen]
        sides = [Evidence.model_validate_json(text) for text in texts]
        return Shown(trial, row["kind"] == "practice", sides[0], sides[1] if len(sides) > 1 else None)

    def label(
        self,
        session: str,
        trial: str,
        revision: int,
        answer: int,
        seconds: float | None = None,
        hidden_seconds: float | None = None,
    ) -> Ack:
        """Answer the current trial with 1 (surely random, or left) to 6 (surely trained, or right).

        `seconds` run from first paint to the answer, `hidden_seconds` of them with the tab hidden; None: not measured.

        The same trial and revision again change nothing and return what is stored. Raises StaleError when the session
        has moved on, a 409 when it is over, a 404 for a trial of another session, a 400 for values that cannot be.
        """
        given = Answer("label", answer=answer, seconds=seconds, hidden_seconds=hidden_seconds)
        with self._file.transaction() as connection:
            return write_answer(connection, session, trial, revision, given)

    def skip(
        self,
        session: str,
        trial: str,
        revision: int,
        reason: str,
        seconds: float | None = None,
        hidden_seconds: float | None = None,
    ) -> Ack:
        """Skip the current trial and say why; otherwise as `label`."""
        given = Answer("skip", reason=reason, seconds=seconds, hidden_seconds=hidden_seconds)
        with self._file.transaction() as connection:
            return write_answer(connection, session, trial, revision, given)

    def undo(self, session: str, wanted: Undoable | None = None) -> Ack:
        """Take back the latest answer to a trial that is not practice; the trial is then open again.

        With `wanted`, from `Current.undoable`, the same request again changes nothing; without, it takes back one more.
        Raises StaleError when the session has moved on, a 409 when it is over or nothing can be taken back.
        """
        with self._file.transaction() as connection:
            return write_undo(connection, session, wanted)

    def is_rating(self, client: str) -> bool:
        """Whether a browser or program has an open session, and must look no latent up."""
        with self._file.reading() as connection:
            return any(row["open"] for row in labelfile.sessions_of(connection, client))

    def items(self, experiment: str) -> list[Item]:
        """The experiment's latents with their statistics, practice too."""
        with self._file.reading() as connection:
            rows = labelfile.items(connection, experiment)
        names = Item.__dataclass_fields__
        return [Item(**{n: row[n] for n in names} | {"statistics": json.loads(row["statistics"])}) for row in rows]

    def standing(self, experiment: str) -> list[Standing]:
        """A row a trial of every session, with its standing answer."""
        with self._file.reading() as connection:
            rows = labelfile.standing(connection, experiment)
        return [_standing(row) for row in rows]

    def all_events(self, experiment: str) -> list[Logged]:
        """The log as it was written, undone answers too."""
        with self._file.reading() as connection:
            return [Logged(**row) for row in labelfile.log(connection, experiment)]


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _find_experiment(connection: Connection, column: str, value: str) -> Experiment:
    row = labelfile.experiment(connection, column, value)
    if row is None:
        raise PageError(404, "No such experiment", "No experiment has this address.", "Ask for a new link.")
    values = {name: row[name] for name in Experiment.__dataclass_fields__}
    design = Design.model_validate_json(row["design"])
    return Experiment(**values | {"design": design, "study": json.loads(row["study"])})


def _item_rows(experiment: str, prepared: Sequence[Prepared]) -> list[Row]:
    """Rows of `items`: of pair n the trained latent is item 2n, the random one 2n + 1."""
    return [
        {
            "experiment": experiment,
            "item": 2 * number + (not trained),
            "pair": number,
            "role": pair.pair.role,
            "trained": trained,
            "sae": latent.sae,
            "variant": latent.variant,
            "layer": latent.layer,
            "latent": latent.latent,
            "density": latent.density,
            "statistics": json.dumps(dict(latent.statistics)),
            "evidence": shown.model_dump_json(),
            "gold_evidence": gold.model_dump_json() if gold else None,
        }
        for number, pair in enumerate(prepared)
        for trained, latent, shown, gold in (
            (True, pair.pair.trained, pair.trained, None),
            (False, pair.pair.random, pair.random, pair.gold),
        )
    ]


def _standing(row: Row) -> Standing:
    other = row.pop("other_density")
    if other is not None:
        row["density"] = math.sqrt(row["density"] * other)
    if row["event"] == "undo":
        row |= dict.fromkeys(("event", "answer", "reason", "seconds", "hidden_seconds"))
    return Standing(**row, form="single" if row["right"] is None else "pair")
