"""Intervals, exact and anytime-valid tests, power, signal detection and ROC, from counts and scores."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NORMAL = NormalDist()
_LOSSLESS = 750.0
"""Nats: e^-750 is zero as a double, so a distribution cut there is whole."""
_AMPLE = 80.0
"""Nats: e^-80 is far below any error rate, and the distribution is a third as long."""
SIZE, POWER = 0.05, 0.8
"""Of the test against one half: how often it may reject a coin, and how often it should reject a rater who can tell."""
NEAREST_ACCURACY = 0.005
"""`labels_needed` refuses accuracies closer to one half: they take some 79,000 labels and more."""


@dataclass(frozen=True)
class Interval:
    """A closed interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Equivalence:
    """The larger p-value of two one-sided tests, what they say, and the interval that says the same."""

    p_value: float
    equivalent: bool
    interval: Interval


@dataclass(frozen=True)
class Sdt:
    """Sensitivity and response bias, both in standard deviations; a criterion below 0 favours "trained"."""

    d_prime: float
    criterion: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) without data. Wilson 1927.

    It is valid for one look at a number of labels fixed beforehand: see `confidence_sequence`.
    """
    check_counts(successes, n)
    check_share("confidence", confidence)
    if n == 0:
        return Interval(0.0, 1.0)
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return Interval(centre - half if successes else 0.0, centre + half if successes < n else 1.0)


def binomial_test(successes: int, n: int, p: float = 0.5) -> float:
    """Exact two-sided p-value: the probability under `p` of all outcomes that are no likelier than this one."""
    check_counts(successes, n)
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; it must lie between 0 and 1.")
    low, masses = _binomial(n, p)
    if not low <= successes < low + len(masses):
        return 0.0
    # The tolerance is scipy's: outcomes that are equally likely must count whatever the rounding.
    return min(1.0, float(masses[masses <= masses[successes - low] * (1 + 1e-7)].sum()))


def equivalence(successes: int, n: int, margin: float, alpha: float = 0.05) -> Equivalence:
    """Whether accuracy lies within `margin` of one half: two one-sided exact binomial tests of size `alpha` each.

    The interval is Clopper and Pearson's at 1 - 2 alpha; it lies within the margin exactly when both tests reject.
    """
    check_counts(successes, n)
    if not 0 < margin < 0.5:
        raise ValueError(f"The margin is {margin}; it must be above 0 and below 0.5, such as 0.05.")
    check_share("alpha", alpha, 0.5)
    at_most, _ = _tails(successes, n, 0.5 + margin)
    _, at_least = _tails(successes, n, 0.5 - margin)
    p_value = max(at_most, at_least)
    return Equivalence(p_value, p_value <= alpha, _clopper_pearson(successes, n, alpha))


def power(accuracy: float, n: int, alpha: float = SIZE) -> float:
    """Probability that `n` labels of the given true accuracy make the exact two-sided test against one half reject."""
    first, masses = _binomial(n, 0.5, _AMPLE)
    rejecting = np.searchsorted(np.cumsum(masses[::-1]), alpha / 2 * (1 + 1e-9), side="right")
    threshold = first + len(masses) - int(rejecting)  # the fewest right answers at which it does; n + 1 where none do
    low, masses = _binomial(n, accuracy, _AMPLE)
    upper, lower = masses[max(0, threshold - low) :], masses[: max(0, n - threshold + 1 - low)]
    return min(1.0, float(upper.sum() + lower.sum()))


def labels_needed(accuracy: float) -> int:
    """The smallest even number of labels, half of them trained, that has 80% power, as has the next even one.

    Power against n is a saw: it drops where the test needs one more right answer. Asking the next even number too
    keeps a lone tooth from being the answer; a later tooth may begin below the wanted power again (62%: .80 at 136, .77
    at 140), so the number is for a session that ends there.
    Raises ValueError for an accuracy too close to one half.
    """
    if not 0 <= accuracy <= 1 or abs(accuracy - 0.5) < NEAREST_ACCURACY * (1 - 1e-9):
        raise ValueError(
            f"The accuracy is {accuracy}; it must lie between 0 and 1, {NEAREST_ACCURACY} or more away from one half."
        )
    # Begun 2% below what the normal approximation says: the exact test takes more than that at every accuracy.
    reach = _NORMAL.inv_cdf(1 - SIZE / 2) / 2 + _NORMAL.inv_cdf(POWER) * math.sqrt(accuracy * (1 - accuracy))
    n = 2 * max(1, int(0.49 * (reach / (accuracy - 0.5)) ** 2))
    while min(power(accuracy, n), power(accuracy, n + 2)) < POWER:
        n += 2
    return n


def sdt(hits: int, misses: int, false_alarms: int, correct_rejections: int) -> Sdt:
    """d′ and criterion with the log-linear correction; a hit is a trained latent called trained. Hautus 1995.

    Raises ValueError without labels of trained latents or without labels of random ones.
    """
    trained, random = hits + misses, false_alarms + correct_rejections
    check_counts(hits, trained)
    check_counts(false_alarms, random)
    if not trained or not random:
        raise ValueError(
            f"d′ needs labels of both kinds; there are {trained} of trained and {random} of random latents."
        )
    hit, false_alarm = _loglinear_z(hits, trained), _loglinear_z(false_alarms, random)
    return Sdt(hit - false_alarm, -(hit + false_alarm) / 2)


def d_prime_2afc(correct: int, n: int) -> float:
    """d′ of choosing between two side by side, sqrt(2) z(share correct), log-linear correction. Green & Swets 1966."""
    check_counts(correct, n)
    if n == 0:
        raise ValueError("d′ needs at least one label; there are 0.")
    return math.sqrt(2) * _loglinear_z(correct, n)


def roc(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates from (0, 0) to (1, 1), one point a distinct score; `labels` are True for trained.

    Raises ValueError when one class is missing or a score is no number.
    """
    truth, values = labelled_scores(labels, scores)
    order = np.argsort(-values, kind="stable")
    last = np.append(_starts(values[order])[1:], len(values)) - 1
    hits = np.cumsum(truth[order])[last] / truth.sum()
    alarms = np.cumsum(~truth[order])[last] / (~truth).sum()
    return np.append(0.0, alarms), np.append(0.0, hits)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a trained item outscores a random one; ties count half. Mann & Whitney 1947. Raises as `roc`."""
    truth, values = labelled_scores(labels, scores)
    return float(weighted_auroc(truth, values, np.ones((1, len(values))))[0])


def weighted_auroc(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC for each row of weights [replicates, items]; nan in rows that weigh only one class."""
    order = np.argsort(scores, kind="stable")
    starts = _starts(scores[order])
    sorted_weights, sorted_truth = weights[:, order], truth[order]
    positive = np.add.reduceat(sorted_weights * sorted_truth, starts, axis=1)
    negative = np.add.reduceat(sorted_weights * ~sorted_truth, starts, axis=1)
    won = positive * (np.cumsum(negative, axis=1) - negative / 2)
    with np.errstate(invalid="ignore"):
        return np.asarray(won.sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))


def labelled_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and scores as arrays [items]; raises ValueError unless both classes occur and every score is finite."""
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=float)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"Labels {truth.shape} and scores {values.shape} must be lists of one length.")
    if not np.isfinite(values).all():
        raise ValueError("A score is not a finite number; leave out items without a score.")
    if not truth.any() or truth.all():
        raise ValueError(f"Both classes are needed; there are {truth.sum()} trained and {(~truth).sum()} random items.")
    return truth, values


def last_true(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The number furthest from `inside` towards `outside` where `holds` is still true, to the precision of a double."""
    while (middle := (inside + outside) / 2) not in (inside, outside):
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def check_counts(successes: int, n: int) -> None:
    """Raises ValueError unless 0 <= successes <= n."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no count; it must lie between 0 and the number of labels.")


def check_share(name: str, value: float, upper: float = 1.0) -> None:
    """Raises ValueError unless 0 < value < upper."""
    if not 0 < value < upper:
        raise ValueError(f"{name} is {value}; it must be above 0 and below {upper:g}.")


def _starts(ordered: NDArray[np.float64]) -> NDArray[np.intp]:
    """Where each distinct value begins."""
    return np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def _loglinear_z(count: int, total: int) -> float:
    return _NORMAL.inv_cdf((count + 0.5) / (total + 1))


def _binomial(n: int, p: float, nats: float = _LOSSLESS) -> tuple[int, NDArray[np.float64]]:
    """The first outcome kept and the probabilities from there on; outcomes left out sum to less than 2 e^-nats."""
    if p in (0, 1):
        return n * int(p), np.ones(1)
    reach = math.ceil(math.sqrt(nats * n / 2)) + 1  # Hoeffding 1963
    low, high = max(0, int(n * p) - reach), min(n, int(n * p) + reach)
    outcomes = np.arange(low + 1, high + 1)
    # In logarithms, from ratios of neighbours: factorials of 100,000 overflow, and their logarithms lose digits.
    logs = np.append(0.0, np.cumsum(np.log((n + 1 - outcomes) / outcomes) + math.log(p) - math.log1p(-p)))
    masses = np.exp(logs - logs.max())
    return low, masses / masses.sum()


def _tails(successes: int, n: int, p: float, nats: float = _LOSSLESS) -> tuple[float, float]:
    """Probabilities of at most and of at least so many successes."""
    low, masses = _binomial(n, p, nats)
    at_most, at_least = masses[: max(0, successes + 1 - low)].sum(), masses[max(0, successes - low) :].sum()
    return min(1.0, float(at_most)), min(1.0, float(at_least))


def _clopper_pearson(successes: int, n: int, alpha: float) -> Interval:
    """Accuracies that neither one-sided exact test of size `alpha` rejects. Clopper & Pearson 1934."""
    if n == 0:
        return Interval(0.0, 1.0)
    share = successes / n
    low = last_true(lambda p: _tails(successes, n, p, _AMPLE)[1] > alpha, share, 0.0) if successes else 0.0
    high = last_true(lambda p: _tails(successes, n, p, _AMPLE)[0] > alpha, share, 1.0) if successes < n else 1.0
    return Interval(low, high)


PRIOR = 10.0
"""Both parameters of the beta mixture. Any choice is valid if made before the labels; it decides where the interval is
narrow. 10 gives an eighth less width near one half than the uniform 1, about the same at 75% and more at 95%, where
there is nothing to settle: half of the sessions exclude one half after 757 labels at 55% (uniform 988), 179 at 60%
(210), 53 at 70% (47), 18 at 95% (8)."""


# Intervals and p-values that stay valid however often they are looked at and whenever a session is stopped. The mixture
# of binomial likelihoods over a beta prior, divided by the likelihood of p, is a martingale when p is the accuracy, so
# the chance that it ever passes 1 / alpha is at most alpha. Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021.


def confidence_sequence(successes: int, n: int, alpha: float = 0.05) -> Interval:
    """Accuracies that the labels so far do not refute; with probability 1 - alpha it holds the truth at all n at once.

    It assumes that each label is right with the same probability whatever came before. It is about half as wide again
    as Wilson's interval, which holds the truth at one n fixed beforehand.
    """
    check_counts(successes, n)
    check_share("alpha", alpha)
    bound = -math.log(alpha)

    def kept(p: float) -> bool:
        return _log_martingale(successes, n, p) < bound

    if n == 0:
        return Interval(0.0, 1.0)
    # The martingale is convex in p and least, below 1, at the share of successes.
    share = successes / n
    low = last_true(kept, share, 0.0) if successes else 0.0
    high = last_true(kept, share, 1.0) if successes < n else 1.0
    return Interval(low, high)


def anytime_p(successes: int, n: int) -> float:
    """p-value of "accuracy is one half" that may be read after every label; at most alpha when `n` labels refute it."""
    check_counts(successes, n)
    return min(1.0, math.exp(-_log_martingale(successes, n, 0.5)))


def _log_martingale(successes: int, n: int, p: float) -> float:
    misses = n - successes
    likelihood = (successes * math.log(p) if successes else 0.0) + (misses * math.log1p(-p) if misses else 0.0)
    return _log_beta(PRIOR + successes, PRIOR + misses) - _log_beta(PRIOR, PRIOR) - likelihood


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
