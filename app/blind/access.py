"""Who is asking: raters by a signed cookie, programs by a bearer token; and the label store, opened at first use."""

import hashlib
import hmac
import threading
from collections.abc import Iterable
from pathlib import Path

from fastapi import Request, Response

from app.blind.design import Design, Experiment
from app.blind.evidence import identity, prepare
from app.blind.labelfile import is_there
from app.blind.sessions import Session
from app.blind.store import LabelStore
from app.errors import PageError, Way
from app.study.study import Study
from core.errors import UserError

COOKIE = "lineup_rater"
COOKIE_SECONDS = 365 * 24 * 3600
"""How long a closed tab can be come back to, and a browser is known to have had its session: a year."""


class Labels:
    """The label store of one server; `store` raises a 503 when another program has the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store: LabelStore | None = None
        self._lock = threading.Lock()

    @property
    def store(self) -> LabelStore:
        """The store, opened at the first use: a server that only shows studies writes nothing."""
        with self._lock:
            if self._store is None:
                try:
                    self._store = LabelStore(self.path)
                except UserError as error:
                    raise PageError(503, "No labels can be kept here now", str(error)) from error
            return self._store

    @property
    def begun(self) -> bool:
        """Whether there is a file of labels."""
        return self._store is not None or is_there(self.path)

    def close(self) -> None:
        """Let go of the file, if it was opened."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None


def labels_path(given: Path | None, paths: Iterable[Path]) -> Path:
    """Where labels are kept: as given, or in `labels/` in the first folder of studies, or beside the first file.

    A DuckDB file that is given, as labels were kept in before, is copied to what is named like it.
    """
    if given is not None:
        given = given.absolute()
        return given.with_suffix(".sqlite") if given.suffix == ".duckdb" else given
    first = next(iter(paths), Path("runs")).absolute()
    folder = first.parent if first.suffix == ".duckdb" else first
    return folder / "labels" / "labels.sqlite"


def store_of(request: Request) -> LabelStore:
    """The server's label store."""
    labels: Labels = request.app.state.labels
    return labels.store


def set_cookie(request: Request, response: Response, session: Session) -> None:
    """Let this browser come back to the session; its `client` is what a later one has in common with it."""
    secret = store_of(request).cookie_secret
    response.set_cookie(
        COOKIE,
        f"{session.session}.{_signature(secret, session.session)}",
        max_age=COOKIE_SECONDS,
        path=str(request.scope.get("root_path", "")) or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def cookie_session(request: Request) -> Session | None:
    """The session that this browser's cookie is for; None without one, or when it was not signed here."""
    labels: Labels = request.app.state.labels
    session, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
    if not session or not labels.begun:
        return None
    if not hmac.compare_digest(signature.encode(), _signature(labels.store.cookie_secret, session).encode()):
        return None
    try:
        return labels.store.session(session)
    except PageError as error:
        if error.status != 404:
            raise
        return None


def program_client(request: Request, experiment: str, named: str) -> str:
    """What ties a program's sessions together: the name that it gives itself; all that give none here are one."""
    secret = store_of(request).cookie_secret
    return _signature(secret, f"program {named}" if named else f"program without a name in {experiment}")


def rater(request: Request) -> Session:
    """The session that this browser is in; raises a 403."""
    session = cookie_session(request)
    if session is None:
        advice = "Open the invitation link that you were given, in a browser that keeps cookies."
        raise PageError(403, "No session here", "This browser has not joined a blind experiment.", advice)
    return session


def program(request: Request) -> Session:
    """The session of the bearer token; raises a 401."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        advice = "Send 'Authorization: Bearer TOKEN' with the token that joining gave."
        raise PageError(401, "No token", "The request has no bearer token.", advice)
    try:
        return store_of(request).session_by_bearer(token.strip())
    except PageError as error:
        if error.status != 404:
            raise
        raise PageError(401, "Unknown token", "The bearer token belongs to no session.", "Join to get one.") from error


def not_while_rating(request: Request) -> None:
    """Keep the browser of latents closed to a rater whose session is open; raises a 403."""
    session = cookie_session(request)
    if session is not None and store_of(request).is_rating(session.client):
        raise PageError(
            403,
            "Closed while you label",
            "You are in the middle of a blind experiment; what these pages show would give its answers away.",
            "Finish your session, or leave it: what you labelled is kept.",
            [Way("Back to your session", "/blind/rate")],
        )


def _signature(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def check_key(request: Request, given: str) -> None:
    """Refuse to set an experiment up without the organiser's key, where the server has one; raises a 403."""
    wanted: str = request.app.state.organiser_key
    if wanted and not hmac.compare_digest(given.encode(), wanted.encode()):
        what = "is missing" if not given else "is not the right one"
        raise PageError(403, "Organisers only", f"The organiser's key {what}.", "Ask whoever runs this server for it.")


def make_experiment(request: Request, study: Study, design: Design) -> tuple[Experiment, str]:
    """Draw the pool, freeze its evidence and keep it; gives the experiment and the organiser's token."""
    return store_of(request).create_experiment(design, identity(study), prepare(study, design))
