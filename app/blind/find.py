"""What the file of labels has, as records; raises a 404 for what it does not have."""

import json

from app.blind import tables
from app.blind.design import Design
from app.blind.records import Experiment, Session
from app.blind.state import Live, SessionState, TrialState, no_trial
from app.errors import PageError

UNSAID = {"min_answered": 0.0}
"""What designs that were kept before a field was there meant by it."""


def find_experiment(connection: tables.Connection, column: str, value: str) -> Experiment:
    """An experiment by `experiment`, `invite` or `organiser_sha256`."""
    row = tables.experiment(connection, column, value)
    if row is None:
        raise PageError(404, "No such experiment", "No experiment has this address.", "Ask for a new link.")
    values = {name: row[name] for name in Experiment.__dataclass_fields__}
    design = Design.model_validate(UNSAID | json.loads(row["design"]))
    return Experiment(**values | {"design": design, "study": json.loads(row["study"])})


def find_session(connection: tables.Connection, column: str, value: str) -> Session:
    """A session by `session` or `token_sha256`."""
    return session_of(_session_row(connection, column, value))


def _session_row(connection: tables.Connection, column: str, value: str) -> tables.Row:
    row = tables.session(connection, column, value)
    if row is None:
        raise PageError(404, "No such session", "This session is not known here.", "Begin with the invitation again.")
    return row


def session_of(row: tables.Row) -> Session:
    """A row of `sessions`."""
    return Session(**{name: row[name] for name in Session.__dataclass_fields__ if name != "token"})


def find_trial(connection: tables.Connection, session: str, trial: str) -> tables.Row:
    """What one of the session's trials shows: see `tables.trial`."""
    row = tables.trial(connection, session, trial)
    if row is None:
        raise no_trial()
    return row


def find_live(connection: tables.Connection, session: str) -> Live:
    """A session with where it stands."""
    row = _session_row(connection, "session", session)
    # Rows come in the order of revisions, so the last one of a trial stays.
    last = {entry["trial"]: entry for entry in tables.revisions(connection, session)}
    trials = [
        TrialState(
            **trial,
            revisions=last[trial["trial"]]["revision"] if trial["trial"] in last else 0,
            last=last[trial["trial"]]["event"] if trial["trial"] in last else None,
        )
        for trial in tables.trials(connection, session)
    ]
    return Live(
        session_of(row), row["frozen_at"] is not None, row["closed_at"] is not None, SessionState(tuple(trials))
    )
