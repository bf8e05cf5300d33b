"""Which labels are analysed, and what they say about the raters: accuracy, signal detection, ROC, statistics."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.blind.design import FEWEST_GOLD, Design, Form, Practice, Truth, right
from app.blind.outcomes import (
    Answers,
    Estimated,
    MetricOutcome,
    Overall,
    RaterOutcome,
    RocPoint,
    Sensitivity,
    Share,
    State,
    Tally,
    Who,
)
from app.blind.store import Item, Standing

# `agreement.logistic_cv` refuses groups of both classes, which is what matched pairs are. Without groups a latent's
# partner in the training folds has its density and the other class: simulated latents that cannot be told apart then
# have an AUROC of .39 to .49.
from core.resampling import (
    Statistic,
    bootstrap_auroc,
    bootstrap_raters_and_items,
    deal_folds,
    logistic_scores,
    weighted_mean,
)
from core.stats import (
    Estimate,
    anytime_p,
    binomial_test,
    confidence_sequence,
    d_prime_2afc,
    equivalence,
    roc,
    sdt,
    weighted_auroc,
    wilson,
)

UNTIMED = "No times: this browser ran no scripts, so the rule about haste cannot be applied."
WHY_PRACTICE: dict[Practice, str] = {
    "again": "a later session of the same browser or program, which has been told the truth",
    "known": "too few of the latents were new to this browser or program",
}
"""Why a session is practice, to the organiser."""


@dataclass(frozen=True)
class Vote:
    """A label that is analysed; `positive` is whether the truth is 'trained' or 'right', `answer` the score for it."""

    rater: str
    pair: int
    left: int
    right: int | None
    layer: int
    variant: str
    density: float
    positive: bool
    answer: int
    correct: bool


def share_of(right: Iterable[bool], final: bool) -> Share:
    """Right answers and both intervals; the valid one is Wilson's when `final`, else the anytime one."""
    answers = list(right)
    correct, n = sum(answers), len(answers)
    fixed, anytime = wilson(correct, n), confidence_sequence(correct, n)
    return Share(correct, n, correct / n if n else None, fixed, anytime, fixed if final else anytime)


def tally(outcomes: Iterable[bool]) -> Tally:
    """How many are true."""
    values = list(outcomes)
    return Tally(sum(values), len(values), sum(values) / len(values) if values else None)


def vote_of(row: Standing) -> Vote | None:
    """The vote that a row is: a label of a main trial; None for everything else."""
    if row.kind != "main" or row.answer is None:
        return None
    return Vote(
        rater=row.session,
        pair=row.pair,
        left=row.left,
        right=row.right,
        layer=row.layer,
        variant=row.variant,
        density=row.density,
        positive=row.truth in ("trained", "right"),
        answer=row.answer,
        correct=right(row.form, row.truth, row.answer),
    )


def votes_of(rows: Iterable[Standing]) -> list[Vote]:
    """All votes among the rows."""
    return [vote for vote in map(vote_of, rows) if vote is not None]


def gold_of(rows: Iterable[Standing]) -> Tally:
    """Gold trials that were labelled, and how many of them rightly."""
    return tally(
        right(row.form, row.truth, row.answer) for row in rows if row.kind == "gold" and row.answer is not None
    )


def same_of(rows: Sequence[Standing]) -> Tally:
    """Repeats labelled on the same side as the first time; two latents are shown with their sides swapped."""
    first = {row.position: row.answer for row in rows}
    outcomes = []
    for row in rows:
        before = None if row.repeats is None else first.get(row.repeats)
        if row.answer is not None and before is not None:
            again = row.answer if row.form == "single" else 7 - row.answer
            outcomes.append((again >= 4) == (before >= 4))
    return tally(outcomes)


def rater_outcome(rows: Sequence[Standing], design: Design, final: bool) -> RaterOutcome:
    """One rater's row, from all trials of the session."""
    first, main = rows[0], [row for row in rows if row.kind == "main"]
    votes, gold, seconds = votes_of(rows), gold_of(rows), _median_seconds(main)
    done = sum(row.event is not None for row in rows)
    broken = _broken_rules(design, len(votes), gold, seconds if first.rater == "person" else None)
    state, why = _state(first, done, final, design.least_labels - len(votes), "; ".join(broken))
    return RaterOutcome(
        pseudonym=first.pseudonym,
        kind=first.rater,
        done=done,
        total=len(rows),
        labelled=len(votes),
        skipped=sum(row.event == "skip" for row in main),
        left_early=first.left_early,
        share=share_of((vote.correct for vote in votes), final),
        median_seconds=seconds,
        gold=gold,
        same=same_of(rows),
        state=state,
        why=why,
        notes=tuple(_notes(first, votes, seconds, done, len(rows))),
    )


def _state(first: Standing, done: int, final: bool, missing: int, broken: str) -> tuple[State, str]:
    """Where a rater stands and why; `missing` labels are needed still, `broken` says which rules are not kept."""
    if first.practice:
        return "practice", WHY_PRACTICE[first.practice]
    if not done:
        return "not started", ""
    if missing > 0 and first.finished_at is None and not final:
        return "under way", f"counted from {missing} more {'label' if missing == 1 else 'labels'} on"
    return ("excluded", broken) if broken else ("counted", "")


def _notes(first: Standing, votes: Sequence[Vote], seconds: float | None, done: int, total: int) -> Iterator[str]:
    if first.left_early:
        yield f"Left early, after {done} of {total} trials; what was given is kept."
    if first.rater == "person" and votes and seconds is None:
        yield UNTIMED


def _median_seconds(rows: Iterable[Standing]) -> float | None:
    taken = [
        max(0.0, row.seconds - (row.hidden_seconds or 0.0))
        for row in rows
        if row.event == "label" and row.seconds is not None
    ]
    return median(taken) if taken else None


def _broken_rules(design: Design, labelled: int, gold: Tally, seconds: float | None) -> list[str]:
    """Which of the rules fixed beforehand leave the rater out; `seconds` is None for programs, which may be fast."""
    reasons = []
    if labelled < design.least_labels:
        reasons.append(f"{labelled} of {design.trials} main trials labelled, fewer than {design.least_labels}")
    if design.min_gold is not None and gold.n >= FEWEST_GOLD and gold.count / gold.n < design.min_gold:
        reasons.append(f"{gold.count} of {gold.n} gold trials right, fewer than {design.min_gold:.0%}")
    if seconds is not None and seconds < design.min_seconds:
        reasons.append(f"median answer after {seconds:.3g} s, sooner than {design.min_seconds:g} s")
    return reasons


SURPRISING = 0.01
"""p-value from which on nothing is said: one rater in a hundred who was told nothing is called knowing by chance."""


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
    if p_value >= SURPRISING:
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
    ways = sum(math.comb(n, k) * math.comb(others, total - k) for k in range(right, min(n, total) + 1))
    return ways / math.comb(n + others, total)


LEVELS = range(1, 7)
"""Answers, from surely random (or left) to surely trained (or right)."""
TRUTHS: dict[Form, tuple[Truth, Truth]] = {"single": ("trained", "random"), "pair": ("right", "left")}
"""The truth for which the upper three answers are right, then the other."""
NO_LABELS = "There are no labels yet."


def overall_of(votes: Sequence[Vote], who: Who, design: Design, final: bool, seed: int) -> Overall:
    """What all votes say together; `seed` decides the bootstraps."""
    share = share_of((vote.correct for vote in votes), final)
    points = () if missing_class(votes, design.form) else _roc(votes)
    return Overall(
        who=who,
        raters=len({vote.rater for vote in votes}),
        share=share,
        p_value=binomial_test(share.correct, share.n),
        equivalence=equivalence(share.correct, share.n, design.margin),
        anytime_p=anytime_p(share.correct, share.n),
        valid="fixed" if final else "anytime",
        crossed=over_raters_and_pairs(votes, [vote.correct for vote in votes], seed),
        sensitivity=_sensitivity(votes, design.form),
        auroc=_auroc(votes, design.form, seed),
        roc=points,
        answers=_answers(votes, design.form),
    )


def missing_class(votes: Sequence[Vote], form: Form) -> str:
    """Why there is no ROC and no d′ of single latents; empty where both truths have labels."""
    if not votes:
        return NO_LABELS
    kinds = {vote.positive for vote in votes}
    missing = [truth for truth, kind in zip(TRUTHS[form], (True, False), strict=True) if kind not in kinds]
    return f"No trial whose truth is “{missing[0]}” has a label yet." if missing else ""


def _sensitivity(votes: Sequence[Vote], form: Form) -> Sensitivity:
    if form == "pair":
        correct = sum(vote.correct for vote in votes)
        return Sensitivity(d_prime_2afc(correct, len(votes))) if votes else Sensitivity(None, None, NO_LABELS)
    reason = missing_class(votes, form)
    if reason:
        return Sensitivity(None, None, reason)
    right = [[vote.correct for vote in votes if vote.positive == kind] for kind in (True, False)]
    (hits, misses), (rejections, alarms) = ((sum(own), len(own) - sum(own)) for own in right)
    found = sdt(hits, misses, alarms, rejections)
    return Sensitivity(found.d_prime, found.criterion)


def _auroc(votes: Sequence[Vote], form: Form, seed: int) -> Estimated:
    reason = missing_class(votes, form)
    if reason:
        return Estimated(None, reason)
    truth = np.array([vote.positive for vote in votes])

    def area(scores: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return weighted_auroc(truth, scores, weights)

    return over_raters_and_pairs(votes, [vote.answer for vote in votes], seed, area)


def _roc(votes: Sequence[Vote]) -> tuple[RocPoint, ...]:
    alarms, hits = roc([vote.positive for vote in votes], [vote.answer for vote in votes])
    return tuple(RocPoint(*point) for point in zip(alarms.tolist(), hits.tolist(), strict=True))


def _answers(votes: Sequence[Vote], form: Form) -> tuple[Answers, Answers]:
    positive, negative = (
        Answers(truth, tuple(sum(v.answer == level and v.positive == kind for v in votes) for level in LEVELS))
        for truth, kind in zip(TRUTHS[form], (True, False), strict=True)
    )
    return positive, negative


FEWEST_LATENTS = 5
"""Latents of each kind with a value, without which no AUROC is told."""
FEWEST_FITTED = 10
"""Latents of each kind, without which no regression is fitted."""
FOLDS = 5
RIDGE = 1.0
LOGISTIC = "logistic regression"


@dataclass(frozen=True)
class Latents:
    """The latents that votes are about, each once: pair, whether it is trained, statistics [latents, names] or nan."""

    pairs: NDArray[np.intp]
    trained: NDArray[np.bool_]
    names: tuple[str, ...]
    statistics: NDArray[np.float64]


def shown_latents(votes: Sequence[Vote], items: Sequence[Item], design: Design) -> Latents:
    """Gather them; latents of practice and of trials without a vote are not among them."""
    numbers = {vote.left for vote in votes} | {vote.right for vote in votes}
    shown = [item for item in items if item.item in numbers]
    names = tuple(sorted({name for item in shown for name in item.statistics}))
    return Latents(
        np.array([item.pair for item in shown], dtype=np.intp),
        np.array([item.variant not in design.variants for item in shown], dtype=bool),
        names,
        np.array([[_value(item, name) for name in names] for item in shown]).reshape(len(shown), len(names)),
    )


def _value(item: Item, name: str) -> float:
    value = item.statistics.get(name)
    return math.nan if value is None or not math.isfinite(value) else value


def metric_outcomes(latents: Latents, seed: int) -> tuple[MetricOutcome, ...]:
    """The AUROC of each statistic alone; the most telling first, those without one last."""
    outcomes = [
        _outcome(name, latents, latents.statistics[:, at], FEWEST_LATENTS, seed)
        for at, name in enumerate(latents.names)
    ]
    return tuple(sorted(outcomes, key=lambda outcome: (outcome.distance is None, -(outcome.distance or 0.0))))


def logistic_outcome(latents: Latents, seed: int) -> MetricOutcome:
    """The AUROC of probabilities from a ridge regression on all statistics; its interval is given the fits."""
    scores = np.zeros(len(latents.pairs))
    if not latents.names and len(scores):
        return MetricOutcome(LOGISTIC, None, None, *_both(latents.trained), "The latents have no statistics.")
    if min(_both(latents.trained)) >= FEWEST_FITTED:
        scores = out_of_fold(latents, np.random.default_rng(seed))
    return _outcome(LOGISTIC, latents, scores, FEWEST_FITTED, seed)


def out_of_fold(latents: Latents, rng: np.random.Generator) -> NDArray[np.float64]:
    """Probability of "trained" for each latent, by a regression on the other folds; pairs stay in one fold."""
    return logistic_scores(latents.statistics, latents.trained, _folds(latents, rng), RIDGE)


def _folds(latents: Latents, rng: np.random.Generator) -> NDArray[np.intp]:
    return deal_folds(latents.trained, latents.pairs, FOLDS, rng)


def _both(trained: NDArray[np.bool_]) -> tuple[int, int]:
    return int(trained.sum()), int((~trained).sum())


def _outcome(name: str, latents: Latents, scores: NDArray[np.float64], fewest: int, seed: int) -> MetricOutcome:
    known = np.isfinite(scores)
    trained, random = _both(latents.trained[known])
    if min(trained, random) < fewest:
        reason = f"{trained} trained and {random} random latents have a value; {fewest} of each are needed."
        return MetricOutcome(name, None, None, trained, random, reason)
    estimate = over_pairs(latents.trained[known], scores[known], latents.pairs[known], seed)
    return MetricOutcome(name, estimate, abs(estimate.value - 0.5), trained, random)


MOST, FEWEST = 2000, 200
"""Replicates of a bootstrap."""
CELLS = 20_000_000
"""Replicates times labels, at most: about a second."""


def replicates_for(values: int, most: int = MOST) -> int:
    """Replicates for so many labels or latents."""
    return max(FEWEST, min(most, CELLS // max(1, values)))


def over_raters_and_pairs(
    votes: Sequence[Vote], values: ArrayLike, seed: int, statistic: Statistic = weighted_mean
) -> Estimated:
    """A statistic of one value a vote; raters and matched pairs, which is what was drawn, are drawn again."""
    raters, pairs = [vote.rater for vote in votes], [vote.pair for vote in votes]
    if max(len(set(raters)), len(set(pairs))) < 2:
        return Estimated(None, "The bootstrap needs labels of two raters or of two pairs.")
    return Estimated(
        bootstrap_raters_and_items(
            values,
            raters,
            pairs,
            statistic,
            rng=np.random.default_rng(seed),
            replicates=replicates_for(len(votes)),
        )
    )


def over_pairs(truth: ArrayLike, scores: ArrayLike, pairs: ArrayLike, seed: int) -> Estimate:
    """The AUROC of one score a latent; pairs of latents are drawn again. Raises as `stats.auroc`."""
    rng, replicates = np.random.default_rng(seed), replicates_for(np.size(scores), 1000)
    return bootstrap_auroc(truth, scores, pairs, rng=rng, replicates=replicates)
