"""What the labels of an experiment come to, by hand arithmetic; and that one in any state has results."""

import json
import math
from dataclasses import asdict
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from blind_rows import double, experiment, items, of, single, ten
from hypothesis import given, settings
from hypothesis import strategies as st

from app.blind.results import results
from core.resampling import krippendorff_alpha
from core.stats import Interval

z = NormalDist().inv_cdf


def test_right_is_the_upper_half_for_trained_and_for_right() -> None:
    share = of(ten()).overall.share
    assert (share.correct, share.n, share.value) == (8, 10, 0.8)
    # right: pair 0 (right, 4), pair 1 (left, 3); wrong: pair 2 (right, 3), pair 3 (left, 6)
    rows = [double("ada", pair, truth, answer) for pair, (truth, answer) in enumerate(
        [("right", 4), ("left", 3), ("right", 3), ("left", 6)]
    )]  # fmt: skip
    share = of(rows, form="pair").overall.share
    assert (share.correct, share.n) == (2, 4)


def test_only_labels_of_main_trials_count() -> None:
    more = [
        single("ada", 10, 6, kind="practice"),
        single("ada", 11, 6, kind="gold"),
        single("ada", 12, 1, kind="repeat", repeats=0),
        single("ada", 14, None),
        single("ada", 16, None, event="skip", reason="other"),
    ]
    assert of(ten() + more).overall == of(ten()).overall


def test_a_closed_experiment_shows_what_holds_for_a_fixed_number_and_an_open_one_what_holds_at_any() -> None:
    closed, live = of(ten()), of(ten(), closed=False)
    # Wilson: worked by hand in test_stats. Exact test: 2 (1 + 10 + 45) / 1024 = .109375
    assert closed.final
    assert closed.overall.valid == "fixed"
    assert closed.overall.share.interval == closed.overall.share.wilson
    assert (closed.overall.share.interval.low, closed.overall.share.interval.high) == pytest.approx(
        (0.4902, 0.9433), abs=1e-4
    )
    assert closed.overall.p_value == pytest.approx(0.109375)
    assert not live.final
    assert live.overall.valid == "anytime"
    assert live.overall.share.interval == live.overall.share.anytime == closed.overall.share.anytime
    assert live.overall.share.anytime.low < live.overall.share.wilson.low
    assert live.raters[0].share.interval == live.raters[0].share.anytime
    assert all(b.exploratory and b.parts[0].share.interval == b.parts[0].share.anytime for b in live.breakdowns)
    assert not any(breakdown.exploratory for breakdown in closed.breakdowns)


def test_the_equivalence_test_has_the_margin_of_the_design() -> None:
    wide, narrow = (of(ten(), margin=margin).overall.equivalence for margin in (0.3, 0.05))
    # at most 8 of 10 right: at accuracy .8, 1 - .8^10 - 10 (.2) .8^9 = .6242; at .55, 1 - .55^10 - 10 (.45) .55^9
    assert (wide.p_value, narrow.p_value) == pytest.approx((0.6242, 0.9767), abs=1e-4)


def test_signal_detection_by_hand() -> None:
    found = of(ten()).overall.sensitivity
    # 4 of 5 trained called trained, 1 of 5 random: log-linear 4.5/6 and 1.5/6
    assert found.d_prime == pytest.approx(z(0.75) - z(0.25))
    assert found.criterion == pytest.approx(0)
    rows = [double("ada", pair, "left", 1 if pair < 8 else 6) for pair in range(10)]
    found = of(rows, form="pair").overall.sensitivity
    assert (found.d_prime, found.criterion) == (pytest.approx(math.sqrt(2) * z(8.5 / 11)), None)


def test_roc_auroc_and_counts_of_levels_by_hand() -> None:
    overall = of(ten()).overall
    # trained: 6 5 4 3 6; random: 2 1 3 4 1
    assert [(a.truth, a.counts) for a in overall.answers] == [
        ("trained", (0, 0, 1, 1, 1, 2)),
        ("random", (2, 1, 1, 1, 0, 0)),
    ]
    expected = [(0, 0), (0, 0.4), (0, 0.6), (0.2, 0.8), (0.4, 1), (0.6, 1), (1, 1)]
    assert np.array([(point.false_alarms, point.hits) for point in overall.roc]) == pytest.approx(np.array(expected))
    # 25 comparisons: 6 6 5 win all 15; 4 wins 4 and ties 1; 3 wins 3, ties 1, loses 1: (15 + 4.5 + 3.5) / 25
    assert overall.auroc.estimate is not None
    assert overall.auroc.estimate.value == pytest.approx(0.92)
    assert overall.auroc.estimate.low <= 0.92 <= overall.auroc.estimate.high
    pairs = [double("ada", 0, "right", 6), double("ada", 1, "left", 2), double("ada", 2, "left", 6)]
    found = of(pairs, form="pair").overall
    assert [(a.truth, a.counts) for a in found.answers] == [
        ("right", (0, 0, 0, 0, 0, 1)),
        ("left", (0, 1, 0, 0, 0, 1)),
    ]
    assert found.auroc.estimate is not None
    assert found.auroc.estimate.value == pytest.approx(0.75)  # one win, one tie


def test_the_crossed_bootstrap_draws_raters_and_pairs() -> None:
    # One rater is always right, one always wrong: raters drawn anew give accuracies 0, one half or 1.
    rows = [single("ada", item, 1 if item % 2 else 6) for item in range(10)]
    rows += [single("bob", item, 6 if item % 2 else 1) for item in range(10)]
    found = of(rows).overall.crossed.estimate
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, 0, 1)
    # Both latents of three pairs wrong, of three pairs right, many raters: six draws of pairs, not twelve of latents.
    rows = [
        single(f"r{rater}", item, 6 if (item % 2 == 0) == (item < 6) else 1)
        for rater in range(40)
        for item in range(12)
    ]
    found = of(rows).overall.crossed.estimate
    assert found is not None
    half = 1.96 * math.sqrt(0.25 / 6)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.2)


def test_parts_by_layer_variant_and_density() -> None:
    found = {breakdown.by: breakdown.parts for breakdown in of(ten()).breakdowns}
    # pairs 0 1 2 3 4 at layers 1 1 3 3 1, variants one two one two one; pair 3 (items 6 and 7) is wrong
    assert [(p.label, p.share.correct, p.share.n) for p in found["layer"]] == [("1", 6, 6), ("3", 2, 4)]
    assert [(p.label, p.share.correct, p.share.n) for p in found["variant"]] == [("one", 6, 6), ("two", 2, 4)]
    # densities .1% to .5%, two trials each: thirds end at .2% and .4% (quantiles .2 and .4 of ten values)
    assert [(p.label, p.share.correct, p.share.n) for p in found["density"]] == [
        ("0.1% to 0.2% of tokens", 4, 4),
        ("0.3% to 0.4% of tokens", 2, 4),
        ("0.5% of tokens", 2, 2),
    ]


def test_equal_densities_stay_in_one_part() -> None:
    (_, _, density) = of(ten(density=0.02)).breakdowns
    assert [(part.label, part.share.n) for part in density.parts] == [("2% of tokens", 10)]


def test_agreement_of_two_raters_by_hand() -> None:
    rows = [single("ada", item, answer) for item, answer in enumerate([6, 5, 1, 2])]
    rows += [single("bob", item, answer) for item, answer in enumerate([4, 3, 1, 2])]
    found = of([*rows, single("ada", 8, 6)])
    # sides 1100 and 1000 of n = 8 codes: Do = 2/8, De = 2·3·5 / (8·7), alpha = 1 - .25 / .5357
    assert found.alpha_nominal.alpha == pytest.approx(1 - 0.25 / (30 / 56))
    ordinal = krippendorff_alpha([[6, 5, 1, 2], [4, 3, 1, 2]], "ordinal").alpha
    assert found.alpha_ordinal.alpha == pytest.approx(ordinal)
    assert of(ten()).alpha_nominal.reason == "No item has labels from two raters."


def test_agreement_on_pairs_is_about_latents_not_sides() -> None:
    # Both choose the trained latent of pairs 0 to 2, wherever it stands; of pair 3 they choose different ones.
    rows = [double("ada", pair, "left", 1) for pair in range(4)]
    rows += [double("bob", pair, "right", 6) for pair in range(3)]
    agreeing = of(rows, form="pair")
    assert agreeing.alpha_nominal.alpha == agreeing.alpha_ordinal.alpha == 1
    found = of([*rows, double("bob", 3, "right", 1)], form="pair")
    # both ways round: n = 16, half of each; Do = 4/16, De = 2·8·8 / (16·15)
    assert found.alpha_nominal.alpha == pytest.approx(1 - 0.25 / (128 / 240))


def test_skips_are_counted_by_reason() -> None:
    reasons = ["other", " other ", None, "I pressed by mistake", "other"]
    rows = [single("ada", 10 + at, None, event="skip", reason=reason) for at, reason in enumerate(reasons)]
    rows += [single("ada", 30, None, event="skip", reason="gold", kind="gold")]
    rows += [single("bob", 10, None, event="skip", reason="of a program", rater="program")]
    assert [(s.reason, s.n) for s in of(ten() + rows).skips] == [
        ("other", 3),
        ("I pressed by mistake", 1),
        ("no reason given", 1),
    ]


def test_notes_say_what_to_beware_of() -> None:
    one, two = of(ten()).notes, of(ten() + ten("bob"), closed=False).notes
    assert not any("independent" in note or "fewer than 8" in note for note in one)
    assert any("independent" in note for note in two)
    assert any("fewer than 8" in note for note in two)
    assert "closed because of" in one[0]
    assert "is open" in two[0]


labels = st.lists(
    st.tuples(
        st.sampled_from(["ada", "bob"]),
        st.integers(0, 23),
        st.none() | st.integers(1, 6),
        st.sampled_from(["main", "main", "gold", "repeat", "practice"]),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(labels, st.sampled_from(["single", "pair"]), st.booleans())
def test_every_state_has_results_that_json_can_say(drawn: list[tuple[Any, ...]], form: str, closed: bool) -> None:
    rows = [
        single(rater, item, answer, kind=kind)
        if form == "single"
        else double(rater, item // 2, ("left", "right")[item % 2], answer, kind=kind)
        for rater, item, answer, kind in drawn
    ]
    found = of(rows, closed, form=form)
    json.dumps(asdict(found), allow_nan=False)
    overall = found.overall
    assert (overall.auroc.estimate is None) == bool(overall.auroc.reason)
    assert (overall.crossed.estimate is None) == bool(overall.crossed.reason)
    assert (overall.sensitivity.d_prime is None) == bool(overall.sensitivity.reason)
    assert all((metric.auroc is None) == bool(metric.reason) for metric in [*found.metrics, found.logistic])


def test_an_empty_experiment_says_why_it_has_no_results() -> None:
    found = results(experiment(), [], [])
    assert found.overall.share.value is None
    assert found.overall.share.interval == Interval(0, 1)
    assert found.overall.p_value == found.overall.anytime_p == 1
    assert found.overall.sensitivity.reason == found.overall.auroc.reason == "There are no labels yet."
    assert (found.pool, found.raters, found.same.value) == (0, (), None)
    one_class = of([single("ada", 0, 6), single("ada", 2, 6)]).overall
    assert one_class.auroc.reason == "No trial whose truth is “random” has a label yet."


def test_the_same_seed_gives_the_same_results() -> None:
    rows = ten() + ten("bob")
    assert results(experiment(), rows, items(12), seed=3) == results(experiment(), rows, items(12), seed=3)
    assert results(experiment(), rows, items(12), seed=3) != results(experiment(), rows, items(12), seed=4)


def test_the_pool_is_counted_without_practice() -> None:
    # three practice trials of single latents take two pairs
    assert results(experiment(practice=3), ten(), items(12)).pool == 10
    assert results(experiment(practice=3), ten(), items(12)).pairs == 5
