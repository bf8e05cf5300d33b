"""Proportions, exact tests, power, signal detection and ROC against scipy, hand arithmetic and the laws they obey."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from core.stats import (
    Interval,
    auroc,
    binomial_test,
    d_prime_2afc,
    equivalence,
    labels_needed,
    power,
    roc,
    sdt,
    weighted_auroc,
    wilson,
)

counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
some_counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
scored = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=40).filter(
    lambda items: len({label for label, _ in items}) == 2
)


@given(some_counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_is_scipys(count: tuple[int, int], confidence: float) -> None:
    expected = reference.binomtest(*count).proportion_ci(confidence, method="wilson")
    found = wilson(*count, confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_a_case_worked_by_hand() -> None:
    # z = 1.96, z² = 3.8415: centre (8 + 1.9207) / 13.8415 = .7167, half 1.96 / 13.8415 √(8·2/10 + .9604) = .2266
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_without_data_says_nothing_and_at_the_ends_reaches_them() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)
    assert {wilson(0, n).low for n in range(1, 200)} == {0.0}
    assert {wilson(n, n).high for n in range(1, 200)} == {1.0}


@given(counts)
def test_wilson_of_the_wrong_answers_is_the_mirror_image(count: tuple[int, int]) -> None:
    successes, n = count
    found, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.6, 0.8])
def test_wilson_holds_the_truth_as_often_as_it_says(p: float) -> None:
    intervals = [wilson(k, 100) for k in range(101)]
    held = [k for k, interval in enumerate(intervals) if interval.low <= p <= interval.high]
    assert 0.93 <= reference.binom.pmf(held, 100, p).sum() <= 0.97


def test_the_exact_test_of_a_case_worked_by_hand() -> None:
    # 9 and 10 right of 10, and 1 and 0: (10 + 1 + 10 + 1) / 1024
    assert binomial_test(9, 10) == pytest.approx(22 / 1024, abs=1e-15)


@given(some_counts, st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.77, 1.0]))
def test_the_exact_test_is_scipys(count: tuple[int, int], p: float) -> None:
    # Near 1e-290 scipy loses digits: it is off by 1% at 161 of 183, p = .01.
    assert binomial_test(*count, p) == pytest.approx(reference.binomtest(*count, p).pvalue, rel=1e-9, abs=1e-250)


@pytest.mark.parametrize("successes", [0, 40_000, 49_700, 50_000, 50_316, 100_000])
def test_the_exact_test_takes_a_hundred_thousand_labels(successes: int) -> None:
    expected = reference.binomtest(successes, 100_000).pvalue
    assert binomial_test(successes, 100_000) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_the_exact_test_without_labels_does_not_reject() -> None:
    assert binomial_test(0, 0) == 1.0


def test_the_exact_test_rejects_a_coin_at_most_as_often_as_it_says() -> None:
    for n in [*range(1, 60), 100, 250]:
        rejected = [k for k in range(n + 1) if binomial_test(k, n) <= 0.05]
        assert reference.binom.pmf(rejected, n, 0.5).sum() <= 0.05


@given(some_counts, st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([0.01, 0.05, 0.1]))
def test_equivalence_is_two_one_sided_tests(count: tuple[int, int], margin: float, alpha: float) -> None:
    found = equivalence(*count, margin, alpha)
    below = reference.binomtest(*count, 0.5 + margin, alternative="less").pvalue
    above = reference.binomtest(*count, 0.5 - margin, alternative="greater").pvalue
    assert found.p_value == pytest.approx(max(below, above), rel=1e-9)
    interval = reference.binomtest(*count).proportion_ci(1 - 2 * alpha, method="exact")
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(counts, st.floats(0.01, 0.49))
def test_equivalence_is_said_exactly_when_the_interval_lies_within_the_margin(
    count: tuple[int, int], margin: float
) -> None:
    found = equivalence(*count, margin)
    assert found.equivalent == (0.5 - margin < found.interval.low and found.interval.high < 0.5 + margin)


@pytest.mark.parametrize("n", [50, 272, 400, 1001])
def test_equivalence_is_rarely_said_of_raters_at_the_margin(n: int) -> None:
    within = [k for k in range(n + 1) if abs(k / n - 0.5) < 0.05]
    said = [k for k in within if equivalence(k, n, 0.05).equivalent]
    assert (len(said) > 0) == (n > 272)
    for edge in (0.45, 0.55):
        assert reference.binom.pmf(said, n, edge).sum() <= 0.05


def test_few_labels_at_one_half_are_not_called_indistinguishable_and_many_are() -> None:
    assert binomial_test(10, 20) == pytest.approx(1)
    assert not equivalence(10, 20, 0.05).equivalent
    assert not equivalence(0, 0, 0.05).equivalent
    assert equivalence(1000, 2000, 0.05).equivalent


@pytest.mark.parametrize(("accuracy", "n"), [(0.7, 20), (0.7, 5), (0.55, 101), (0.35, 64), (1.0, 6), (0.5, 30)])
@pytest.mark.parametrize("alpha", [0.05, 0.0625])
def test_power_adds_up_the_outcomes_at_which_the_test_rejects(accuracy: float, n: int, alpha: float) -> None:
    # alpha .0625 is the size of the test at n = 5 to the last digit: five of five, or none, 2 / 32.
    rejecting = [k for k in range(n + 1) if reference.binomtest(k, n).pvalue <= alpha]
    expected = reference.binom.pmf(rejecting, n, accuracy).sum()
    assert power(accuracy, n, alpha) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("accuracy", "n"), [(0.55, 808), (0.60, 204), (0.65, 90), (0.70, 52)])
def test_labels_needed_are_those_the_protocol_names(accuracy: float, n: int) -> None:
    assert labels_needed(accuracy) == n


@pytest.mark.parametrize("accuracy", [*np.arange(0.52, 1.001, 0.005), 0.0, 0.31, 0.515])
def test_no_smaller_even_number_does(accuracy: float) -> None:
    accuracy = min(accuracy, 1.0)
    n = np.arange(2, 12_000, 2)
    threshold = reference.binom.isf(0.025, n, 0.5) + 1  # the fewest right answers at which the test rejects
    upper, lower = reference.binom.sf(threshold - 1, n, accuracy), reference.binom.cdf(n - threshold, n, accuracy)
    enough = upper + lower >= 0.8
    expected = n[np.flatnonzero(enough[:-1] & enough[1:])[0]]
    assert labels_needed(accuracy) == expected


def test_labels_needed_give_the_wanted_power_to_a_simulated_rater() -> None:
    rng = np.random.default_rng(0)
    n = labels_needed(0.65)
    right = (rng.random((4000, n)) < 0.65).sum(axis=1)
    rejected = np.mean([binomial_test(int(k), n) <= 0.05 for k in right])
    assert 0.78 <= rejected <= 0.84


@given(st.floats(0.53, 1.0))
def test_labels_needed_have_the_power_and_are_even_and_the_same_for_the_mirrored_rater(accuracy: float) -> None:
    n = labels_needed(accuracy)
    assert n % 2 == 0
    assert power(accuracy, n) >= 0.8
    assert labels_needed(1 - accuracy) == pytest.approx(n, abs=2)  # 1 - accuracy is rounded


def test_labels_needed_come_while_one_types() -> None:
    begun = time.perf_counter()
    assert 19_000 < labels_needed(0.51) < 21_000
    assert time.perf_counter() - begun < 0.5  # 40 ms on an idle core


def test_signal_detection_of_a_case_worked_by_hand() -> None:
    # all right of 19 each: (19 + .5) / 20 = .975 and .5 / 20 = .025, z = ±1.959964
    found = sdt(hits=19, misses=0, false_alarms=0, correct_rejections=19)
    assert found.d_prime == pytest.approx(2 * 1.959964, abs=1e-6)
    assert found.criterion == pytest.approx(0, abs=1e-12)
    assert d_prime_2afc(19, 19) == pytest.approx(math.sqrt(2) * 1.959964, abs=1e-6)


def test_signal_detection_recovers_a_simulated_observer() -> None:
    rng = np.random.default_rng(1)
    trained, random = rng.normal(1.2, 1, 200_000), rng.normal(0, 1, 200_000)
    says_trained = 0.9  # halfway is .6, so the criterion is .3
    hits, alarms = int((trained > says_trained).sum()), int((random > says_trained).sum())
    found = sdt(hits, 200_000 - hits, alarms, 200_000 - alarms)
    assert found.d_prime == pytest.approx(1.2, abs=0.02)
    assert found.criterion == pytest.approx(0.3, abs=0.02)
    assert d_prime_2afc(int((trained > random).sum()), 200_000) == pytest.approx(1.2, abs=0.02)


@given(*[st.integers(0, 50)] * 4)
def test_who_mixes_up_the_names_has_the_opposite_sensitivity(
    hits: int, misses: int, alarms: int, rejections: int
) -> None:
    if not (hits + misses and alarms + rejections):
        with pytest.raises(ValueError, match="labels of both kinds"):
            sdt(hits, misses, alarms, rejections)
        return
    found, swapped = sdt(hits, misses, alarms, rejections), sdt(misses, hits, rejections, alarms)
    assert (swapped.d_prime, swapped.criterion) == pytest.approx((-found.d_prime, -found.criterion), abs=1e-12)
    assert math.isfinite(found.d_prime)


def test_the_curve_and_its_area_of_a_case_worked_by_hand() -> None:
    # thresholds 5, 4, 2, 1; of six pairs 5 wins 2, 4 wins 1 and ties 1, 2 wins 1: 4.5 / 6
    labels, scores = [True, True, False, True, False], [5, 4, 4, 2, 1]
    alarms, hits = roc(labels, scores)
    assert alarms.tolist() == pytest.approx([0, 0, 1 / 2, 1 / 2, 1])
    assert hits.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert auroc(labels, scores) == pytest.approx(0.75)


@given(scored)
def test_auroc_is_the_area_under_the_curve_and_the_mann_whitney_statistic(items: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([label for label, _ in items]), np.array([score for _, score in items])
    alarms, hits = roc(labels, scores)
    assert auroc(labels, scores) == pytest.approx(np.trapezoid(hits, alarms))
    pairs = labels.sum() * (~labels).sum()
    won = reference.mannwhitneyu(scores[labels], scores[~labels], method="asymptotic").statistic
    assert auroc(labels, scores) == pytest.approx(won / pairs)


@given(scored)
def test_auroc_asks_for_order_alone_and_reverses_with_it(items: list[tuple[bool, int]]) -> None:
    labels, scores = [label for label, _ in items], [score for _, score in items]
    assert auroc(labels, [math.exp(3 * score) for score in scores]) == pytest.approx(auroc(labels, scores))
    assert auroc(labels, [-score for score in scores]) == pytest.approx(1 - auroc(labels, scores))


@given(scored, st.integers(0, 100))
def test_a_weight_of_two_is_an_item_seen_twice(items: list[tuple[bool, int]], seed: int) -> None:
    times = np.random.default_rng(seed).integers(1, 4, len(items))
    labels, scores = np.array([label for label, _ in items]), np.array([score for _, score in items], dtype=float)
    repeated = auroc(np.repeat(labels, times), np.repeat(scores, times))
    assert weighted_auroc(labels, scores, times[None].astype(float))[0] == pytest.approx(repeated)


def test_what_cannot_be_computed_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="0 trained and 2 random"):
        auroc([False, False], [1, 2])
    with pytest.raises(ValueError, match="2 trained and 0 random"):
        roc([True, True], [1, 2])
    with pytest.raises(ValueError, match="not a finite number"):
        auroc([True, False], [1, math.nan])
    with pytest.raises(ValueError, match="lists of one length"):
        auroc([True, False], [1, 2, 3])
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match=r"margin is 0\.5"):
        equivalence(1, 2, 0.5)
    with pytest.raises(ValueError, match=r"0\.005 or more away from one half"):
        labels_needed(0.5)
    with pytest.raises(ValueError, match="at least one label"):
        d_prime_2afc(0, 0)
