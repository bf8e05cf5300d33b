"""The store of blind experiments: each method is one transaction, on disk when it returns, from whatever thread."""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.blind import names, tables
from app.blind.answers import Answer, write_answer, write_undo
from app.blind.design import Design, Practice
from app.blind.evidence import Evidence, Prepared
from app.blind.file import LabelFile
from app.blind.find import find_experiment, find_live, find_session, find_trial, session_of
from app.blind.once import look, to_end
from app.blind.records import (
    Ack,
    Current,
    Experiment,
    Item,
    Logged,
    Outlook,
    Progress,
    Rater,
    Session,
    Shown,
    Standing,
    Undoable,
)
from app.blind.rows import item_of, item_rows, pair_rows, trial_rows
from app.blind.sampling import draw_session
from app.blind.state import Live
from app.errors import PageError

MOST_LIVE = 1000
"""Sessions that are kept in memory, at most."""


class LabelStore:
    """The one file of blind experiments; raises UserError when it cannot be opened."""

    def __init__(self, path: Path, checkpoint_bytes: int = 16 * 2**20) -> None:
        self._file = LabelFile(path, checkpoint_bytes)
        # Sessions as they are on disk, so that an answer costs one insert; guarded by the lock, and only ever filled
        # after a commit. What is not in it is read from the file.
        self._live: dict[str, Live] = {}
        self._writing = threading.Lock()

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
        values: tables.Row = {
            "experiment": experiment,
            "title": design.title,
            "design": design.model_dump_json(),
            "study": json.dumps(study, ensure_ascii=False),
            "organiser_sha256": _sha256(token),
            "invite": secrets.token_urlsafe(16),
            "created_at": tables.now(),
        }
        items, pairs = item_rows(experiment, prepared), pair_rows(experiment, prepared)
        with self._file.transaction() as connection:
            tables.insert_experiment(connection, values, items, pairs)
            return find_experiment(connection, "experiment", experiment), token

    def experiment(self, experiment: str) -> Experiment:
        """An experiment by its id; raises a 404."""
        with self._file.reading() as connection:
            return find_experiment(connection, "experiment", experiment)

    def experiment_by_organiser(self, token: str) -> Experiment:
        """The experiment that an organiser's token opens; raises a 404."""
        with self._file.reading() as connection:
            return find_experiment(connection, "organiser_sha256", _sha256(token))

    def experiment_by_invite(self, invite: str) -> Experiment:
        """The experiment that an invitation leads to; raises a 404."""
        with self._file.reading() as connection:
            return find_experiment(connection, "invite", invite)

    def close_experiment(self, experiment: str) -> None:
        """Take no more sessions and answers; what was written stays. Closing twice is closing once."""
        with self._writing:
            self._live.clear()
            with self._file.transaction() as connection:
                tables.close(connection, experiment)

    def join(
        self, experiment: str, pseudonym: str | None = None, kind: Rater = "person", client: str | None = None
    ) -> Session:
        """Begin a session with trials of its own; makes up a pseudonym where none is given.

        `client` is that of an earlier session of the same browser, or names a program; None is somebody new. A
        program's session has its bearer token, told here once. Raises a 404 for no such experiment, a 400 for a
        pseudonym that cannot be, a 409 for one that is taken, for an experiment that is closed, and for a client that
        is in the middle of another session.
        """
        wanted = None if pseudonym is None else names.check_pseudonym(pseudonym)
        client = client or secrets.token_urlsafe(18)
        with self._writing, self._file.transaction() as connection:
            known = find_experiment(connection, "experiment", experiment)
            if known.closed_at:
                raise PageError(409, "This experiment is closed", "It takes no more raters.", "")
            beginning = look(connection, known, client)
            for ended in to_end(beginning):
                self._live.pop(ended, None)
                tables.finish(connection, ended, left_early=True)
            taken = {names.folded(row["pseudonym"]) for row in tables.sessions(connection, experiment)}
            session = _new_session(experiment, _free_name(wanted, taken), kind, client, beginning.outlook.practice)
            trials = draw_session(beginning.main, beginning.pools.practice, known.design, session.seed)
            rows = trial_rows(session.session, trials, beginning.pools)
            tables.insert_session(connection, _session_row(session), rows)
        return session

    def outlook(self, experiment: str, client: str | None) -> Outlook:
        """What a session of this client in the experiment would be now; None is somebody new. Raises a 404."""
        if client is None:
            return Outlook()
        with self._file.reading() as connection:
            return look(connection, find_experiment(connection, "experiment", experiment), client).outlook

    def session(self, session: str) -> Session:
        """A session by its id; raises a 404."""
        with self._file.reading() as connection:
            return find_session(connection, "session", session)

    def session_by_bearer(self, token: str) -> Session:
        """The session of a program by its bearer token; raises a 404."""
        with self._file.reading() as connection:
            return find_session(connection, "token_sha256", _sha256(token))

    def sessions(self, experiment: str) -> list[Progress]:
        """The experiment's sessions in the order of joining, with how far they are."""
        with self._file.reading() as connection:
            found = [session_of(row) for row in tables.sessions(connection, experiment)]
            counts = tables.progress(connection, experiment)
        return [Progress(s, counts[s.session]["done"], counts[s.session]["total"]) for s in found]

    def leave(self, session: str) -> None:
        """End a session before its last trial; leaving twice is leaving once, and a finished one stays finished."""
        with self._writing:
            self._live.pop(session, None)
            with self._file.transaction() as connection:
                if find_session(connection, "session", session).finished_at is None:
                    tables.finish(connection, session, left_early=True)

    def current(self, session: str) -> Current:
        """Where a session stands; raises a 404."""
        return self._now(session).current

    def shown(self, session: str, trial: str) -> Shown:
        """What a rater sees at one of their trials, as frozen with the experiment; raises a 404."""
        with self._file.reading() as connection:
            row = find_trial(connection, session, trial)
            items = [item for item in (row["left_item"], row["right_item"]) if item is not None]
            seen = tables.evidence(connection, row["experiment"], items)
        sides = [_seen(seen[item], row["kind"] == "gold") for item in items]
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
        return self._write(session, lambda connection, live: write_answer(connection, live, trial, revision, given))

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
        return self._write(session, lambda connection, live: write_answer(connection, live, trial, revision, given))

    def undo(self, session: str, wanted: Undoable | None = None) -> Ack:
        """Take back the latest answer to a trial that is not practice; the trial is then open again.

        With `wanted`, from `Current.undoable`, the same request again changes nothing; without, it takes back one more.
        Raises StaleError when the session has moved on, a 409 when it is over or nothing can be taken back.
        """
        return self._write(session, lambda connection, live: write_undo(connection, live, wanted))

    def _write(self, session: str, write: Callable[[tables.Connection, Live], tuple[Ack, Live]]) -> Ack:
        with self._writing:
            live = self._live.pop(session, None)
            with self._file.transaction() as connection:
                ack, after = write(connection, live or find_live(connection, session))
            if len(self._live) >= MOST_LIVE:
                self._live.clear()
            self._live[session] = after
            return ack

    def _now(self, session: str) -> Live:
        live = self._live.get(session)
        if live is not None:
            return live
        with self._file.reading() as connection:
            return find_live(connection, session)

    def is_rating(self, client: str) -> bool:
        """Whether a browser or program has an open session, and must look no latent up."""
        with self._file.reading() as connection:
            return any(row["open"] for row in tables.sessions_of(connection, client))

    def items(self, experiment: str) -> list[Item]:
        """The experiment's latents with their statistics, practice too."""
        with self._file.reading() as connection:
            return [item_of(row) for row in tables.items(connection, experiment)]

    def standing(self, experiment: str) -> list[Standing]:
        """A row a trial of every session, with its standing answer."""
        with self._file.reading() as connection:
            rows = tables.standing(connection, experiment)
        return [_standing(row) for row in rows]

    def all_events(self, experiment: str) -> list[Logged]:
        """The log as it was written, undone answers too."""
        with self._file.reading() as connection:
            return [Logged(**row) for row in tables.log(connection, experiment)]


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _free_name(wanted: str | None, taken: Collection[str]) -> str:
    if wanted is None:
        return next(name for name in iter(names.make_pseudonym, None) if name not in taken)
    if names.folded(wanted) in taken:
        raise PageError(
            409,
            "That pseudonym is taken",
            f"Another rater is called “{wanted}”, or something that looks like it.",
            "Choose another, or none to get one.",
        )
    return wanted


def _new_session(experiment: str, pseudonym: str, kind: Rater, client: str, practice: Practice | None) -> Session:
    return Session(
        session=secrets.token_urlsafe(18),
        experiment=experiment,
        pseudonym=pseudonym,
        kind=kind,
        # Not from the design's seed: who knows that one could work out what others will see.
        seed=secrets.randbits(62),
        started_at=tables.now(),
        finished_at=None,
        left_early=False,
        client=client,
        practice=practice,
        token=secrets.token_urlsafe(24) if kind == "program" else None,
    )


def _session_row(session: Session) -> tables.Row:
    values = dict(session.__dict__)
    token = values.pop("token")
    return values | {"token_sha256": _sha256(token) if token else None}


def _seen(row: tables.Row, gold: bool) -> Evidence:
    # Of a gold pair only the random latent has been shuffled; the trained one is shown as it is.
    return Evidence.model_validate_json((row["gold_evidence"] if gold else None) or row["evidence"])


def _standing(row: tables.Row) -> Standing:
    undone = row["event"] == "undo"
    gone = dict.fromkeys(("event", "answer", "reason", "seconds", "hidden_seconds")) if undone else {}
    form = "single" if row["right"] is None else "pair"
    return Standing(**row | gone | {"form": form})
