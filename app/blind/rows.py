"""Converts between the store's records and the rows of its tables."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from app.blind.evidence import Evidence, Prepared
from app.blind.records import Item
from app.blind.sampling import Candidate, Pair, Trial
from app.blind.tables import Row


def item_rows(experiment: str, prepared: Sequence[Prepared]) -> list[Row]:
    """Rows of `items`: of pair n the trained latent is item 2n, the random one 2n + 1."""
    rows = []
    for number, pair in enumerate(prepared):
        rows.append(_item_row(experiment, 2 * number, pair.pair.trained, pair.trained, None))
        rows.append(_item_row(experiment, 2 * number + 1, pair.pair.random, pair.random, pair.gold))
    return rows


def _item_row(experiment: str, item: int, latent: Candidate, shown: Evidence, gold: Evidence | None) -> Row:
    return {
        "experiment": experiment,
        "item": item,
        "sae": latent.sae,
        "variant": latent.variant,
        "layer": latent.layer,
        "latent": latent.latent,
        "density": latent.density,
        "statistics": json.dumps(dict(latent.statistics)),
        "evidence": shown.model_dump_json(),
        "gold_evidence": gold.model_dump_json() if gold else None,
    }


def pair_rows(experiment: str, prepared: Sequence[Prepared]) -> list[Row]:
    """Rows of `pairs`."""
    return [
        {
            "experiment": experiment,
            "pair": number,
            "role": pair.pair.role,
            "trained_item": 2 * number,
            "random_item": 2 * number + 1,
        }
        for number, pair in enumerate(prepared)
    ]


def item_of(row: Row) -> Item:
    """A row of `tables.items`."""
    values = {name: row[name] for name in Item.__dataclass_fields__}
    return Item(**values | {"statistics": json.loads(row["statistics"])})


@dataclass(frozen=True)
class Pools:
    """An experiment's pairs by role, and the item of every latent."""

    main: list[Pair]
    practice: list[Pair]
    items: dict[tuple[int, int], int]


def pools_of(rows: Sequence[Row]) -> Pools:
    """From the rows of `tables.items`, which has a pair's trained latent before its random one."""
    latents = [Candidate(row["sae"], row["latent"], row["variant"], row["layer"], row["density"], {}) for row in rows]
    items = {latent.key: row["item"] for latent, row in zip(latents, rows, strict=True)}
    pairs = [
        Pair(trained, random, row["role"])
        for trained, random, row in zip(latents[::2], latents[1::2], rows[::2], strict=True)
    ]
    by_role = {role: [pair for pair in pairs if pair.role == role] for role in ("main", "practice")}
    return Pools(by_role["main"], by_role["practice"], items)


def trial_rows(session: str, trials: Sequence[Trial], pools: Pools) -> list[Row]:
    """Rows of `trials`, each with a random token of its own."""
    return [
        {
            "trial": secrets.token_urlsafe(18),
            "session": session,
            "position": trial.position,
            "kind": trial.kind,
            "left_item": pools.items[trial.left.key],
            "right_item": pools.items[trial.right.key] if trial.right else None,
            "truth": trial.truth,
            "repeats": trial.repeats,
        }
        for trial in trials
    ]
