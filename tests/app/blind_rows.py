"""Rows of the label store, made by hand: an experiment, its latents, trials with their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from app.blind.design import Design, Experiment
from app.blind.outcomes import Results
from app.blind.results import results
from app.blind.store import Item, Standing


def design(**changes: Any) -> Design:
    """Two layers, two random variants, no practice; one label is enough to count."""
    values: dict[str, Any] = {"title": "Can you tell?", "study": "small", "layers": (1, 3), "variants": ("one", "two")}
    return Design(**values | {"form": "single", "trials": 10, "practice": 0, "min_answered": 0} | changes)


def experiment(closed: bool = False, **changes: Any) -> Experiment:
    """An experiment of that design."""
    made, end = datetime(2026, 1, 2, 3, 4, 5), datetime(2026, 1, 3) if closed else None
    drawn = design(**changes)
    return Experiment("abc", drawn.title, drawn, {"name": drawn.study}, "invite", made, made, end)


def items(pairs: int, statistics: Sequence[Mapping[str, float | None]] = ()) -> list[Item]:
    """Latents of so many pairs, the trained one first; layers and variants take turns."""
    given = [*statistics, *({} for _ in range(2 * pairs - len(statistics)))]
    return [
        Item(
            item=2 * pair + random,
            pair=pair,
            sae=random,
            variant=variant_of(pair) if random else "trained",
            layer=layer_of(pair),
            latent=100 + 2 * pair + random,
            density=0.001 * (pair + 1),
            statistics=given[2 * pair + random],
        )
        for pair in range(pairs)
        for random in (0, 1)
    ]


def layer_of(pair: int) -> int:
    """Two pairs a layer."""
    return (1, 3)[pair // 2 % 2]


def variant_of(pair: int) -> str:
    """One pair a variant."""
    return ("one", "two")[pair % 2]


def single(name: str, item: int, answer: int | None, **changes: Any) -> Standing:
    """A trial of one latent; even items are trained. The position is the item unless said."""
    row = Standing(
        session=f"s-{name}",
        pseudonym=name,
        rater="person",
        practice=None,
        started_at=datetime(2026, 1, 2, 3, 4, 5),
        finished_at=None,
        left_early=False,
        position=item,
        kind="main",
        form="single",
        truth="random" if item % 2 else "trained",
        repeats=None,
        pair=item // 2,
        left=item,
        right=None,
        variant=variant_of(item // 2),
        layer=layer_of(item // 2),
        density=0.001 * (item // 2 + 1),
        event=None if answer is None else "label",
        answer=answer,
        reason=None,
        seconds=None if answer is None else 2.0,
        hidden_seconds=None if answer is None else 0.0,
        revisions=0 if answer is None else 1,
    )
    return replace(row, **changes)


def double(name: str, pair: int, truth: str, answer: int | None, **changes: Any) -> Standing:
    """A trial of two latents, the trained one on the side that is the truth."""
    left, right = (2 * pair, 2 * pair + 1) if truth == "left" else (2 * pair + 1, 2 * pair)
    row = single(name, 2 * pair, answer, form="pair", truth=truth, left=left, right=right, position=pair)
    return replace(row, **changes)


TEN = [6, 2, 5, 1, 4, 3, 3, 4, 6, 1]
"""Answers to items 0 to 9: wrong at item 6 (trained, called 3) and item 7 (random, called 4), so 8 of 10 are right."""


def ten(name: str = "ada", **changes: Any) -> list[Standing]:
    """Ten labels of one rater."""
    return [single(name, item, answer, **changes) for item, answer in enumerate(TEN)]


def of(rows: Sequence[Standing], closed: bool = True, **changes: Any) -> Results:
    """The results of an experiment of twelve pairs."""
    return results(experiment(closed, **changes), rows, items(12))
