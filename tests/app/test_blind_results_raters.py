"""Each rater's row, who is left out and why, and what a rater is told at the end."""

import json
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import pytest
from blind_rows import double, experiment, items, of, single, ten

from app.blind.analysis import UNTIMED
from app.blind.results import rater_result
from app.blind.store import Standing


def test_a_rater_row_by_hand() -> None:
    more = [
        single("ada", 11, 1, kind="gold", position=20),
        single("ada", 13, 5, kind="gold", position=21),
        single("ada", 0, 4, kind="repeat", repeats=0, position=22),
        single("ada", 1, 4, kind="repeat", repeats=1, position=23),
        single("ada", 14, None, event="skip", reason="other", seconds=1.0),
        single("ada", 15, None, kind="gold", event="skip"),
        single("ada", 16, None),
    ]
    (found,) = of([replace(row, left_early=True) for row in ten(seconds=5.0, hidden_seconds=2.0) + more]).raters
    assert (found.pseudonym, found.kind, found.done, found.total) == ("ada", "person", 16, 17)
    assert (found.labelled, found.skipped, found.share.correct) == (10, 1, 8)
    assert found.median_seconds == 3.0
    assert (found.gold.count, found.gold.n) == (1, 2)
    assert (found.same.count, found.same.n, found.same.value) == (1, 2, 0.5)
    assert found.left_early
    assert found.state == "counted"
    assert found.notes == ("Left early, after 16 of 17 trials; what was given is kept.",)


def test_a_repeat_of_two_latents_is_the_same_when_the_other_side_is_chosen() -> None:
    rows = [
        double("ada", 0, "left", 2, position=0),
        double("ada", 0, "right", 5, position=1, kind="repeat", repeats=0),
        double("ada", 1, "left", 2, position=2),
        double("ada", 1, "right", 3, position=3, kind="repeat", repeats=2),
        double("ada", 3, "right", 6, position=6),
        double("ada", 3, "left", 1, position=7, kind="repeat", repeats=6),
        double("ada", 2, "left", None, position=4, event="skip"),
        double("ada", 2, "right", 3, position=5, kind="repeat", repeats=4),
    ]
    found = of(rows, form="pair")
    assert (found.same.count, found.same.n) == (2, 3)
    assert found.raters[0].same == found.same


END = datetime(2026, 1, 2, 4)


def gold(rater: str, right: int, n: int, **changes: Any) -> list[Standing]:
    return [single(rater, 1, 1 if at < right else 6, kind="gold", position=50 + at, **changes) for at in range(n)]


@pytest.mark.parametrize(
    ("rows", "changes", "why"),
    [
        (gold("bob", 1, 3), {}, "1 of 3 gold trials right, fewer than 60%"),
        (gold("bob", 3, 5), {}, ""),
        (gold("bob", 0, 2), {}, ""),
        (gold("bob", 0, 3), {"min_gold": None}, ""),
        ([single("bob", 1, 1, kind="practice", seconds=0.1)], {}, ""),
    ],
)
def test_gold_leaves_raters_out_where_there_are_three(rows: list[Standing], changes: dict[str, Any], why: str) -> None:
    wrong = [single("bob", item, 6 if item % 2 else 1) for item in range(10)]
    found = of(ten() + wrong + rows, **changes)
    assert (found.raters[1].why, found.raters[1].state) == (why, "excluded" if why else "counted")
    assert (found.overall.raters, found.overall.share.n) == ((1, 10) if why else (2, 20))
    assert found.overall.share.correct == 8


def test_haste_leaves_people_out_but_no_programs() -> None:
    fast = {"seconds": 3.0, "hidden_seconds": 2.75}
    again = single("bob", 0, 6, kind="repeat", repeats=0, position=30)
    found = of([*ten(), *ten("bob", **fast), again])
    assert found.raters[1].why == "median answer after 0.25 s, sooner than 1.5 s"
    assert found.overall.share.n == 10
    assert len(found.breakdowns[0].parts) == 2
    assert sum(part.share.n for part in found.breakdowns[0].parts) == 10
    assert found.alpha_nominal.alpha is None
    assert (found.raters[1].same.n, found.same.n) == (1, 0)
    assert of(ten() + ten("bob", seconds=1.5)).overall.share.n == 20
    assert of(ten("bot", rater="program", **fast)).overall.share.n == 10


@pytest.mark.parametrize(
    ("rows", "closed", "state", "why"),
    [
        ([single("bob", 0, None)], True, "not started", ""),
        ([single("bob", 0, None), single("bob", 1, 6, kind="practice")], False, "under way", "5 more labels on"),
        ([single("bob", item, 6) for item in range(4)], False, "under way", "counted from 1 more label on"),
        ([single("bob", item, 6) for item in range(4)], True, "excluded", "4 of 10 main trials labelled, fewer than 5"),
        ([single("bob", item, None, event="skip") for item in range(10)], True, "excluded", "0 of 10 main trials"),
        ([single("bob", item, 6) for item in range(5)], False, "counted", ""),
        ([single("bob", item, 6, practice="known") for item in range(5)], True, "practice", "too few of the latents"),
        ([single("bob", item, 6, rater="program") for item in range(5)], True, "program", "in no number about people"),
        (
            [single("bob", item, 6, seconds=0.2, finished_at=END) for item in range(2)] + gold("bob", 1, 3),
            False,
            "excluded",
            "2 of 10 main trials labelled, fewer than 5; 1 of 3 gold trials right, fewer than 60%; median answer after"
            " 0.2 s, sooner than 1.5 s",
        ),
    ],
)
def test_the_states_of_a_rater(rows: list[Standing], closed: bool, state: str, why: str) -> None:
    found = of(ten() + rows, closed, min_answered=0.5)
    bob = found.raters[1]
    assert (bob.state, why in bob.why, bool(bob.why)) == (state, True, bool(why))
    assert found.overall.share.n == (15 if state == "counted" else 10)


def test_a_browser_without_scripts_measures_no_time_and_that_is_said() -> None:
    assert of(ten(seconds=None)).raters[0].notes == (UNTIMED,)
    assert of(ten(seconds=None)).raters[0].state == "counted"
    assert of(ten(seconds=None, rater="program")).raters[0].notes == ()


def test_a_practice_session_enters_no_statistic() -> None:
    again = [single("ada", 0, 6, kind="repeat", repeats=0, position=30)]
    skipped = [single("bob", 20, None, event="skip", practice="again")]
    alone = of(ten() + again)
    both = of([*ten(), *again, *ten("bob", practice="again"), *skipped])
    assert replace(both, raters=alone.raters) == alone


def test_programs_stand_apart_from_people() -> None:
    both = of(ten() + ten("bot", rater="program"))
    assert (both.overall.who, both.overall.raters, both.overall.share.n) == ("people", 1, 10)
    assert [(rater.kind, rater.share.n) for rater in both.raters] == [("person", 10), ("program", 10)]
    alone = of([*ten("bot", rater="program"), single("ada", 0, None)])
    assert (alone.overall.who, alone.overall.share.n) == ("programs", 10)
    assert any("about programs" in note for note in alone.notes)
    assert not any("about programs" in note for note in both.notes)
    # A person who is left out is a person: nothing is said of programs in their place.
    out = of(ten(seconds=0.1) + ten("bot", rater="program"))
    assert (out.overall.who, out.overall.share.n) == ("people", 0)


def test_what_a_rater_is_told_at_the_end() -> None:
    extra = [single("ada", 11, 1, kind="gold"), single("ada", 0, 6, kind="repeat", repeats=0, position=30)]
    skipped = [single("ada", 16, None, event="skip"), single("ada", 17, None, event="skip", kind="gold")]
    found = rater_result(experiment(), ten() + extra + skipped, items(12))
    assert (found.pseudonym, found.share.correct, found.share.n, found.skipped) == ("ada", 8, 10, 1)
    assert found.share.interval == found.share.wilson
    assert found.p_value == pytest.approx(0.109375)
    assert (found.gold.count, found.gold.n, found.same.count, found.same.n) == (1, 1, 1, 1)
    first, second = found.missed
    assert (first.position, first.truth, first.answer) == (6, "trained", 3)
    assert asdict(first.latents[0]) == {
        "study": "small",
        "variant": "trained",
        "layer": 3,
        "latent": 106,
        "trained": True,
    }
    assert [(latent.variant, latent.trained) for latent in second.latents] == [("two", False)]
    assert found.verdict.startswith("Your answers are consistent with guessing: the 95% interval holds one half")
    json.dumps(asdict(found), allow_nan=False)


def test_a_missed_pair_names_the_left_latent_first() -> None:
    (missed,) = rater_result(experiment(form="pair"), [double("ada", 1, "right", 2)], items(12)).missed
    assert [(latent.variant, latent.latent, latent.trained) for latent in missed.latents] == [
        ("two", 103, False),
        ("trained", 102, True),
    ]


@pytest.mark.parametrize(
    ("right", "n", "said"),
    [
        (0, 0, "nothing to say"),
        (5, 10, "consistent with guessing"),
        (38, 60, "on the edge"),  # Wilson's low end is .507, the exact p .052
        (45, 60, "better than a coin"),
        (15, 60, "worse than a coin"),
    ],
)
def test_the_verdict_says_whether_the_interval_holds_one_half(right: int, n: int, said: str) -> None:
    rows = [
        single("ada", item % 24, (6 if item % 2 == 0 else 1) if item < right else (1 if item % 2 == 0 else 6))
        for item in range(n)
    ]
    found = rater_result(experiment(), rows, items(12))
    assert (found.share.correct, found.share.n) == (right, n)
    assert said in found.verdict
