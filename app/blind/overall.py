"""All analysed votes together: accuracy with intervals and tests, signal detection, ROC, answers by level."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.blind.design import Design, Form
from app.blind.draw import Truth
from app.blind.outcomes import Answers, Estimated, Overall, RocPoint, Sensitivity, Who
from app.blind.resample import over_raters_and_pairs
from app.blind.votes import Vote, share_of
from app.sequential import anytime_p
from app.stats import binomial_test, d_prime_2afc, equivalence, roc, sdt, weighted_auroc

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
    missing = [truth for truth, kind in zip(TRUTHS[form], (True, False), strict=True) if kind not in _kinds(votes)]
    return f"No trial whose truth is “{missing[0]}” has a label yet." if missing else ""


def _kinds(votes: Sequence[Vote]) -> set[bool]:
    return {vote.positive for vote in votes}


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
