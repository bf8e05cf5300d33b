"""The interval that may be watched: a martingale, ends that solve its equation, and what watching does to Wilson's."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln

from core.stats import PRIOR, Interval, _log_martingale, anytime_p, confidence_sequence, wilson

FLIPS = 1000
counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def reference(successes: int, n: int, p: float) -> float:
    mixture = betaln(PRIOR + successes, PRIOR + n - successes) - betaln(PRIOR, PRIOR)
    return float(mixture - successes * math.log(p) - (n - successes) * math.log1p(-p))


@given(counts, st.floats(0.05, 0.95))
def test_the_expected_next_value_is_the_present_one(count: tuple[int, int], p: float) -> None:
    successes, n = count
    now = _log_martingale(successes, n, p)
    right = math.exp(_log_martingale(successes + 1, n + 1, p) - now)
    wrong = math.exp(_log_martingale(successes, n + 1, p) - now)
    assert p * right + (1 - p) * wrong == pytest.approx(1, rel=1e-8)


def test_the_martingale_begins_at_one() -> None:
    assert _log_martingale(0, 0, 0.3) == pytest.approx(0, abs=1e-12)


@given(counts, st.sampled_from([0.01, 0.05, 0.2]))
def test_the_ends_are_where_the_martingale_reaches_its_bound(count: tuple[int, int], alpha: float) -> None:
    successes, n = count
    found = confidence_sequence(successes, n, alpha)
    assert found.low <= successes / n <= found.high
    for end in (found.low, found.high):
        # So near 1 a double holds few digits of 1 - p, and at 0 or 1 there is no equation to solve.
        if 1e-6 < end < 1 - 1e-6:
            assert reference(successes, n, end) == pytest.approx(-math.log(alpha), abs=1e-6)


def test_nothing_is_known_without_labels_and_the_ends_are_kept_at_the_edges() -> None:
    assert confidence_sequence(0, 0) == Interval(0.0, 1.0)
    assert confidence_sequence(0, 9).low == 0.0
    assert confidence_sequence(9, 9).high == 1.0


@given(counts)
def test_the_p_value_and_the_interval_say_the_same(count: tuple[int, int]) -> None:
    found = confidence_sequence(*count)
    assert (anytime_p(*count) <= 0.05) == (not found.low <= 0.5 <= found.high)
    assert anytime_p(*count) == pytest.approx(min(1, math.exp(-reference(*count, 0.5))), rel=1e-6)


@given(counts)
def test_the_wrong_answers_have_the_mirror_image(count: tuple[int, int]) -> None:
    successes, n = count
    found, mirrored = confidence_sequence(successes, n), confidence_sequence(n - successes, n)
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-9)
    assert anytime_p(successes, n) == pytest.approx(anytime_p(n - successes, n), rel=1e-9)


@given(counts)
def test_the_interval_rises_with_the_successes_and_narrows_with_the_error_allowed(count: tuple[int, int]) -> None:
    successes, n = count
    found, next_up, narrower = (
        confidence_sequence(successes, n),
        confidence_sequence(successes + 1, n + 1),
        confidence_sequence(successes, n, 0.2),
    )
    assert next_up.low >= found.low - 1e-12
    assert next_up.high >= found.high - 1e-12
    assert found.low <= narrower.low <= narrower.high <= found.high


@pytest.mark.parametrize(("accuracy", "labels"), [(0.6, 179), (0.95, 18)])
def test_half_of_the_sessions_exclude_one_half_after_the_labels_that_the_prior_promises(
    accuracy: float, labels: int
) -> None:
    right = (np.random.default_rng(4).random((2000, FLIPS)) < accuracy).cumsum(axis=1)
    excluded = right >= first_counts(lambda k, n: 2 * k > n and anytime_p(k, n) <= 0.05)
    assert np.median(excluded.argmax(axis=1) + 1) == pytest.approx(labels, rel=0.06)


def ever_missing(interval: Callable[[int, int], Interval], p: float, sequences: int = 1000) -> float:
    """Share of sequences in which the interval, looked at after every flip, misses the truth at least once."""
    right = (np.random.default_rng(7).random((sequences, FLIPS)) < p).cumsum(axis=1)
    # Both ends rise with the successes and fall with the misses, so a length has a fewest and a most successes with the
    # truth inside, and neither falls from one length to the next.
    fewest = first_counts(lambda k, n: interval(k, n).high >= p)
    beyond = first_counts(lambda k, n: interval(k, n).low > p)
    return float(((right < fewest) | (right >= beyond)).any(axis=1).mean())


def first_counts(holds: Callable[[int, int], bool]) -> list[int]:
    """For each length the fewest successes at which something holds."""
    found, successes = [], 0
    for n in range(1, FLIPS + 1):
        successes = next(k for k in range(successes, n + 2) if k > n or holds(k, n))
        found.append(successes)
    return found


@pytest.mark.parametrize("p", [0.5, 0.7])
def test_a_watched_session_misses_the_truth_as_rarely_as_promised_and_wilsons_interval_far_more_often(p: float) -> None:
    assert ever_missing(confidence_sequence, p) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert ever_missing(wilson, p) > 0.4


def test_stopping_at_the_first_significant_label_is_no_cheat() -> None:
    right = (np.random.default_rng(11).random((500, 300)) < 0.5).cumsum(axis=1)
    known = {(k, n): anytime_p(k, n) for n in range(1, 301) for k in np.unique(right[:, n - 1]).tolist()}
    smallest = [min(known[k, n] for n, k in enumerate(row, 1)) for row in right.tolist()]
    assert np.mean(np.array(smallest) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)
