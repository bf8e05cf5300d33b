"""The design of a blind experiment: what it counts and what it refuses."""

import re

import pytest
from small_experiment import design

from app.blind.design import Counts, Design, DesignError, read_design

LEAST = {"title": "T", "study": "s", "layers": [1], "variants": ["step0"], "form": "single"}


def test_the_planned_counts_by_hand() -> None:
    own = Design(title="T", study="s", layers=(1,), variants=("step0",), form="single")
    # round(0.07 * 60) = round(4.2) repeats, round(0.05 * 60) = 3 gold trials
    assert own.counts == Counts(practice=6, main=60, repeats=4, gold=3)
    assert own.counts.total == 73
    # one latent a trial: 30 pairs give 60 trials; each gold trial has a pair of its own
    assert (own.rater_pairs, own.practice_pairs) == (33, 3)
    beside = own.model_copy(update={"form": "pair"})
    assert (beside.rater_pairs, beside.practice_pairs) == (63, 6)


def test_a_share_gives_at_least_one_trial_and_none_gives_none() -> None:
    assert design(trials=10, repeats=0.01, gold=0.01).counts == Counts(4, 10, 1, 1)
    assert design(trials=10, repeats=0, gold=0).counts == Counts(4, 10, 0, 0)


def test_the_least_number_of_labels_is_rounded_up_and_never_none() -> None:
    assert [
        design(trials=n, min_answered=share).least_labels for n, share in ((10, 0.5), (10, 0.51), (10, 0), (10, 1))
    ] == [
        5,
        6,
        1,
        10,
    ]


@pytest.mark.parametrize(
    ("trials", "gold", "says"),
    [
        (60, 0.05, ""),  # 3
        (40, 0.08, ""),  # round(3.2) = 3
        (40, 0.05, "a rater has 2. It takes a share of 0.08 or 52 trials."),  # .05 · 50 = 2.5 is rounded to even
        (10, 0.1, "a rater has 1. It takes 26 trials."),  # 3 of 10 would be more than a fifth
        (10, 0.2, "a rater has 2. It takes 14 trials."),
        (20, 0, "a rater has 0. It takes a share of 0.15."),
        (10, 0, "a rater has 0. It takes 16 trials and a share of 0.2."),
        (10, 0.001, "a rater has 1. It takes 16 trials and a share of 0.2."),
    ],
)
def test_a_rule_about_gold_that_cannot_apply_says_what_it_takes(trials: int, gold: float, says: str) -> None:
    note = design(trials=trials, gold=gold).note
    assert note.endswith(says)
    assert bool(note) == bool(says)
    assert design(trials=trials, gold=gold, min_gold=None).note == ""
    for more in re.findall(r"(\d+) trials", note.split("It takes")[-1]):
        share = gold if gold * int(more) >= 2.5 else 0.2
        assert design(trials=int(more), gold=share).note == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 7}, ["trials", "7"]),
        ({"trials": 31}, ["trials", "31", "multiple of 2"]),
        ({"trials": 2002}, ["trials", "2002", "2000"]),
        ({"form": "triple"}, ["form", "triple", "'single' or 'pair'"]),
        ({"layers": []}, ["layers"]),
        ({"layers": [1, 1]}, ["layers", "twice"]),
        ({"layers": [-1]}, ["layers", "-1"]),
        ({"variants": ["a", "a"]}, ["variants", "twice"]),
        ({"title": " "}, ["title"]),
        ({"title": "x" * 121}, ["title", "120"]),
        ({"tier": 5}, ["tier", "5", "4"]),
        ({"repeats": 0.3}, ["repeats", "0.3", "0.2"]),
        ({"margin": 0.5}, ["margin", "0.3"]),
        ({"min_seconds": float("nan")}, ["min_seconds", "nan"]),
        ({"contexts": 2}, ["contexts", "2", "3"]),
        ({"pool": 32}, ["pool is 32", "needs 33"]),
        ({"coulour": 1}, ["coulour", "Known", "margin"]),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_it_may_be(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(DesignError) as caught:
        read_design(LEAST | change)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DesignError, match="study is missing"):
        read_design({key: value for key, value in LEAST.items() if key != "study"})


def test_a_design_survives_json() -> None:
    own = design(min_gold=None, pool=40)
    assert Design.model_validate_json(own.model_dump_json()) == own


def test_a_design_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        design().trials = 40  # type: ignore[misc]
