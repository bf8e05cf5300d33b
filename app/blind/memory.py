"""Whether a rater knows what earlier raters were told: a sign of somebody who came back unrecognised, and no rule."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import comb

from app.blind.analysis import Vote, votes_of
from app.blind.design import Design
from app.blind.records import Standing

SIGNIFICANT = 0.01
"""One rater in a hundred who was told nothing is called knowing by chance."""


def first_told(standing: Iterable[Standing], design: Design) -> dict[int, datetime]:
    """When the truth of each latent was first told to anybody: at the end of a session in which it was labelled."""
    told: dict[int, datetime] = {}
    for row in standing if design.feedback == "end" else ():
        if row.kind == "main" and row.answer is not None and row.finished_at is not None:
            for item in _items(row):
                told[item] = min(row.finished_at, told.get(item, row.finished_at))
    return told


def knowing(rows: Sequence[Standing], told: Mapping[int, datetime]) -> str:
    """A sentence if a rater is better on latents that had been told before the session began; empty otherwise.

    Which latents those are was drawn, so whoever was told nothing is as good on them as on the others: Fisher's exact
    test, one-sided.
    """
    begun = rows[0].started_at
    old, new = list[bool](), list[bool]()
    for vote in votes_of(rows):
        before = any(told[item] <= begun for item in _items(vote) if item in told)
        (old if before else new).append(vote.correct)
    p_value = better(sum(old), len(old), sum(new), len(new))
    if p_value >= SIGNIFICANT:
        return ""
    return (
        f"Right in {sum(old)} of {len(old)} trials whose truth an earlier session had been told, in {sum(new)} of"
        f" {len(new)} others (Fisher's exact test, p = {p_value:.2g}): perhaps somebody who was here before."
    )


def _items(shown: Standing | Vote) -> tuple[int, ...]:
    return (shown.left,) if shown.right is None else (shown.left, shown.right)


def better(right: int, n: int, others_right: int, others: int) -> float:
    """One-sided p-value of Fisher's exact test: `right` of `n` or more, with as many right in all. Fisher 1934."""
    total = right + others_right
    ways = sum(comb(n, k) * comb(others, total - k) for k in range(right, min(n, total) + 1))
    return ways / comb(n + others, total)
