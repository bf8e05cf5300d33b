"""The design of a blind experiment: what it counts and what it refuses."""

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
