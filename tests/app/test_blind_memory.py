"""A rater who knows what earlier raters were told is seen by it, and others are not."""

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

import pytest
from blind_rows import design, double, of, single

from app.blind.analysis import better, first_told, knowing
from app.blind.store import Standing

BEGUN = datetime(2026, 1, 2)
HOUR = timedelta(hours=1)


def test_the_exact_test_by_hand() -> None:
    # 4 right of 5 in all: C(3, 3) C(2, 1) / C(5, 4) = 2 / 5 for three of three; two of two right of two: 1 / C(4, 2)
    assert better(3, 3, 1, 2) == pytest.approx(2 / 5)
    assert better(2, 2, 0, 2) == pytest.approx(1 / 6)
    assert better(0, 3, 2, 2) == better(0, 0, 2, 4) == better(3, 3, 0, 0) == better(0, 0, 0, 0) == 1


def session(name: str, at: int, items: range, right: Callable[[int], bool], over: bool = True) -> list[Standing]:
    """Labels of items in an hour of a session's own."""
    begun = BEGUN + 2 * at * HOUR
    return [
        single(
            name,
            item,
            (6, 1)[(item % 2 == 0) != right(item)],
            started_at=begun,
            finished_at=begun + HOUR if over else None,
        )
        for item in items
    ]


def test_whoever_is_right_on_what_others_were_told_is_seen() -> None:
    first = session("ada", 0, range(20), lambda item: item % 3 == 0)
    knows = session("bob", 1, range(40), lambda item: item < 20 or item % 2 == 0)
    found = of(first + knows, closed=False)
    assert [rater.notes for rater in found.raters[:1]] == [()]
    (note,) = found.raters[1].notes
    # C(20, 10) / C(40, 30) = 184756 / 847660528
    assert note.startswith("Right in 20 of 20 trials whose truth an earlier session had been told, in 10 of 20 others")
    assert "p = 0.00022" in note
    assert found.raters[1].state == "counted"  # a sign, no rule
    assert of(first + knows, closed=False, feedback="none").raters[1].notes == ()


def test_what_was_told_later_or_to_nobody_is_no_sign() -> None:
    knows = session("bob", 1, range(40), lambda item: item < 20 or item % 2 == 0)
    unfinished = session("ada", 0, range(20), bool, over=False)
    later = session("ada", 2, range(20), bool)
    for others in (unfinished, later, []):
        told = first_told([*others, *knows], design())
        assert knowing(knows, told) == ""


def test_either_latent_of_a_pair_may_have_been_told() -> None:
    told = first_told([double("ada", 3, "left", 1, finished_at=BEGUN)], design(form="pair"))
    assert told == {6: BEGUN, 7: BEGUN}
    skipped = [double("ada", 3, "left", None, event="skip", finished_at=BEGUN)]
    gold = [double("ada", 3, "left", 1, kind="gold", finished_at=BEGUN)]
    assert first_told(skipped + gold, design(form="pair")) == {}


def test_of_raters_who_were_told_nothing_at_most_one_in_a_hundred_is_called_knowing() -> None:
    rng = Random(0)
    first = session("ada", 0, range(30), bool)
    told = first_told(first, design())
    flagged = 0
    for _ in range(300):
        items = rng.sample(range(60), 40)
        rows = [row for item in items for row in session("bob", 1, range(item, item + 1), lambda _: rng.random() < 0.7)]
        flagged += bool(knowing(rows, told))
    assert flagged <= 9  # 3 expected at most; more than 9 with one seed in a thousand
