"""A small blind experiment for tests: candidates, a design and evidence made up, no study read."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from app.blind.design import Design
from app.blind.evidence import Evidence, Prepared, shuffle_tokens
from app.blind.sampling import Candidate, draw_pool
from app.blind.sessions import Ack, Session
from app.blind.store import LabelStore
from app.errors import PageError

VARIANTS = ("step0", "control")
LAYERS = (1, 3)
STUDY = {"name": "small", "config_sha256": "ab", "title": "<script>"}


def design(**changes: Any) -> Design:
    """Thirty trials a rater: 4 practice, 20 main, 4 repeats, 2 gold."""
    values: dict[str, Any] = {
        "title": "Small",
        "study": "small",
        "layers": LAYERS,
        "variants": VARIANTS,
        "form": "single",
        "trials": 20,
        "practice": 4,
        "repeats": 0.2,
        "gold": 0.1,
        "contexts": 3,
    }
    return Design(**values | changes)


def candidates(layers: tuple[int, ...], variants: tuple[str, ...], each: int, seed: int = 0) -> list[Candidate]:
    """`each` random latents a cell with trained ones of nearly the same densities, so that all can be matched."""
    rng = Random(seed)
    found = []
    for layer in layers:
        densities = [10 ** rng.uniform(-4, -1) for _ in range(each * len(variants))]
        for number, density in enumerate(densities):
            found.append(Candidate(layer, number, "trained", layer, density, {"density": density}))
            place = 1 + number % len(variants)
            sae = 1000 * place + layer
            found.append(Candidate(sae, number, variants[place - 1], layer, density * 1.001, {"density": None}))
    return found


def evidence(latent: Candidate) -> Evidence:
    """Three contexts of four tokens that say which latent it is, with hostile text among them."""
    texts = (f" sae{latent.sae}", f" latent{latent.latent}", "<script>alert(1)</script>", "\u202e'\"\n")
    return Evidence(contexts=tuple(tuple((text, (at + row) % 10) for at, text in enumerate(texts)) for row in range(3)))


def prepared(own: Design, each: int = 30) -> list[Prepared]:
    """The pool of a design with its evidence."""
    rng = Random(own.seed)
    pairs = draw_pool(candidates(own.layers, own.variants, each), own, rng)
    return [
        Prepared(
            pair,
            evidence(pair.trained),
            evidence(pair.random),
            shuffle_tokens(evidence(pair.random), rng) if pair.role == "main" and own.counts.gold else None,
        )
        for pair in pairs
    ]


def begin(store: LabelStore, own: Design | None = None) -> Session:
    """Join a new experiment."""
    own = own or design()
    return store.join(store.create_experiment(own, STUDY, prepared(own))[0].experiment)


def answer(store: LabelStore, session: Session, value: int = 4) -> Ack:
    """Label whatever is open now."""
    now = store.current(session.session)
    assert now.trial is not None
    return store.label(session.session, now.trial, now.revision, value, 1.5, 0.5)


def past_practice(store: LabelStore, session: Session) -> None:
    """Label all of practice."""
    while store.current(session.session).practice:
        answer(store, session)


def finish(store: LabelStore, session: Session) -> None:
    """Label everything that is left."""
    while not store.current(session.session).finished:
        answer(store, session)


def rows(store: LabelStore, session: Session) -> int:
    """Rows in the log of the session's experiment."""
    return len(store.all_events(session.experiment))


def status_of(act: Callable[[], object]) -> int:
    """The status of the PageError that something raises."""
    with pytest.raises(PageError) as caught:
        act()
    return caught.value.status


def trials_of(store: LabelStore, session: Session) -> list[str]:
    """A session's trials in order, as no rater can know them."""
    with store._file.reading() as connection:
        sql = "SELECT trial FROM trials WHERE session = ? ORDER BY position"
        return [row[0] for row in connection.execute(sql, [session.session]).fetchall()]


@dataclass(frozen=True)
class Progress:
    """How far a session is."""

    session: Session
    done: int
    total: int


def sessions(store: LabelStore, experiment: str) -> list[Progress]:
    """The experiment's sessions in the order of joining."""
    with store._file.reading() as connection:
        sql = "SELECT session FROM sessions WHERE experiment = ? ORDER BY started_at, session"
        names = [row[0] for row in connection.execute(sql, [experiment]).fetchall()]
    return [Progress(store.session(name), (now := store.current(name)).done, now.total) for name in names]
