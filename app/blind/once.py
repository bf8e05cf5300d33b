"""Who has been told the truth remembers it: what a browser or program has rated, and so what a new session of it is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from app.blind import tables
from app.blind.find import find_experiment, session_of
from app.blind.records import Experiment, Outlook
from app.blind.rows import Pools, pools_of
from app.blind.sampling import Candidate, Pair
from app.errors import PageError

Latent: TypeAlias = tuple[str, int]
"""An SAE, by the hash of its weights, and the index of a latent there: the same in whatever experiment."""


@dataclass(frozen=True)
class Beginning:
    """What a new session would be, what it is drawn from, and the rows of its client's open sessions."""

    outlook: Outlook
    pools: Pools
    main: Sequence[Pair]
    open: Sequence[tables.Row]


def look(connection: tables.Connection, experiment: Experiment, client: str) -> Beginning:
    """What a session of this browser or program in the experiment would be now.

    It counts if no earlier one here has an answer that counts, and if enough pairs are left of which the client has
    answered neither latent, in whatever experiment; it is drawn from these.
    """
    past = tables.sessions_of(connection, client)
    own = [row for row in past if row["experiment"] == experiment.experiment]
    elsewhere = [row for row in past if row["open"] and row not in own]
    pools = pools_of(tables.items(connection, experiment.experiment))
    fresh = _fresh(pools.main, experiment, _answered(connection, client) if past else ())
    again, known = any(row["answers"] for row in own), len(fresh) < experiment.design.rater_pairs
    outlook = Outlook(
        own=session_of(own[-1]) if own else None,
        elsewhere=session_of(elsewhere[-1]) if elsewhere else None,
        practice="again" if again else "known" if known else None,
    )
    main = pools.main if outlook.practice else fresh
    return Beginning(outlook, pools, main, [row for row in past if row["open"]])


def to_end(beginning: Beginning) -> list[str]:
    """The client's open sessions, which end when this one begins; raises a 409 when one of them must be gone on with.

    One at a time: what the end of one tells would give answers of the other away. A program that broke down before its
    first answer cannot come back, so its session ends by itself.
    """
    if any(row["answers"] or row["kind"] == "person" for row in beginning.open):
        raise PageError(
            409,
            "One session at a time",
            "You are in the middle of a session, and what its end tells would give answers away here.",
            "Go on with that one, or end it, and come back.",
        )
    return [row["session"] for row in beginning.open]


def _answered(connection: tables.Connection, client: str) -> Collection[Latent]:
    rows = tables.answered_latents(connection, client)
    studies = {
        name: find_experiment(connection, "experiment", name).study for name in {row["experiment"] for row in rows}
    }
    return {_latent(studies[row["experiment"]], row["variant"], row["layer"], row["latent"]) for row in rows}


def _fresh(pairs: Sequence[Pair], experiment: Experiment, known: Collection[Latent]) -> Sequence[Pair]:
    """Pairs of which the client has answered neither latent."""

    def is_known(one: Candidate) -> bool:
        return _latent(experiment.study, one.variant, one.layer, one.latent) in known

    return [pair for pair in pairs if not (is_known(pair.trained) or is_known(pair.random))]


def _latent(study: Mapping[str, Any], variant: str, layer: int, latent: int) -> Latent:
    place = f"{variant} {layer}"
    return study.get("saes", {}).get(place, place), latent
